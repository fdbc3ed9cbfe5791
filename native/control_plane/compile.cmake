# sage_prefect._control_plane: the control plane's modules as one extension, made by mypyc.
# Without mypyc, or with SAGE_COMPILE_CONTROL_PLANE=OFF, Python runs the sources as they are.
option(SAGE_COMPILE_CONTROL_PLANE "Compile sage_prefect.control_plane with mypyc" ON)
if(NOT SAGE_COMPILE_CONTROL_PLANE)
  return()
endif()

execute_process(
  COMMAND "${Python_EXECUTABLE}" -c "import mypyc.build"
  ERROR_VARIABLE _mypyc_error RESULT_VARIABLE _mypyc_missing)
if(_mypyc_missing)
  message(WARNING "mypyc cannot be used; the control plane stays interpreted, several times "
    "slower. Its error: ${_mypyc_error}")
  return()
endif()

set(_generator "${CMAKE_CURRENT_SOURCE_DIR}/native/control_plane/generate.py")
set(_c_directory "${CMAKE_CURRENT_BINARY_DIR}/control_plane")
file(GLOB_RECURSE _sources CONFIGURE_DEPENDS "sage_prefect/control_plane/*.py")
execute_process(
  COMMAND "${Python_EXECUTABLE}" "${_generator}" --list "${CMAKE_CURRENT_SOURCE_DIR}"
  OUTPUT_VARIABLE _c_files OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
list(TRANSFORM _c_files PREPEND "${_c_directory}/")

# The stamp is what is always new; C files that stay the same keep their time and their objects.
set(_stamp "${CMAKE_CURRENT_BINARY_DIR}/control_plane.stamp")
add_custom_command(
  OUTPUT "${_stamp}"
  BYPRODUCTS ${_c_files}
  COMMAND "${Python_EXECUTABLE}" "${_generator}" "${CMAKE_CURRENT_SOURCE_DIR}" "${_c_directory}"
  COMMAND "${CMAKE_COMMAND}" -E touch "${_stamp}"
  DEPENDS "${_generator}" "${CMAKE_CURRENT_SOURCE_DIR}/sage_prefect/common/compiled.py" ${_sources}
  COMMENT "Control plane: Python to C"
  VERBATIM)
add_custom_target(sage_control_plane_c DEPENDS "${_stamp}")

Python_add_library(_control_plane MODULE WITH_SOABI ${_c_files})
add_dependencies(_control_plane sage_control_plane_c)
target_include_directories(_control_plane PRIVATE "${_c_directory}" "${_c_directory}/lib-rt")
# Generated code: its warnings are nobody's.
target_compile_options(_control_plane PRIVATE -w -fvisibility=hidden $<$<CONFIG:Release>:-O2>)
install(TARGETS _control_plane LIBRARY DESTINATION sage_prefect)
