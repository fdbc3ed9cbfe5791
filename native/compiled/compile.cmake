# Packages as one extension each, made by mypyc (generate.py has the table of them).
# Without mypyc, or with SAGE_COMPILE=OFF, Python runs the sources as they are.
option(SAGE_COMPILE "Compile the control plane and the gateway's data path with mypyc" ON)
if(NOT SAGE_COMPILE)
  return()
endif()

execute_process(
  COMMAND "${Python_EXECUTABLE}" -c "import mypyc.build"
  ERROR_VARIABLE _mypyc_error RESULT_VARIABLE _mypyc_missing)
if(_mypyc_missing)
  message(WARNING "mypyc cannot be used; control plane and gateway stay interpreted, several times "
    "slower. Its error: ${_mypyc_error}")
  return()
endif()

# sage_compile(PACKAGE MODULE FOLDER DESTINATION OPTIMISATION)
#   PACKAGE: full name; MODULE: the extension's last name; FOLDER: of the sources, below the root;
#   DESTINATION: where the extension is installed; OPTIMISATION: for release builds.
function(sage_compile package module folder destination optimisation)
  set(generator "${CMAKE_CURRENT_SOURCE_DIR}/native/compiled/generate.py")
  set(c_directory "${CMAKE_CURRENT_BINARY_DIR}/${module}")
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS "${folder}/*.py")
  execute_process(
    COMMAND "${Python_EXECUTABLE}" "${generator}" --list "${package}" "${CMAKE_CURRENT_SOURCE_DIR}"
    OUTPUT_VARIABLE c_files OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
  list(TRANSFORM c_files PREPEND "${c_directory}/")

  # The stamp is what is always new; C files that stay the same keep their time and their objects.
  set(stamp "${CMAKE_CURRENT_BINARY_DIR}/${module}.stamp")
  add_custom_command(
    OUTPUT "${stamp}"
    BYPRODUCTS ${c_files}
    COMMAND "${Python_EXECUTABLE}" "${generator}" "${package}" "${CMAKE_CURRENT_SOURCE_DIR}"
      "${c_directory}"
    COMMAND "${CMAKE_COMMAND}" -E touch "${stamp}"
    DEPENDS "${generator}" "${CMAKE_CURRENT_SOURCE_DIR}/sage_prefect/common/compiled.py" ${sources}
    COMMENT "${package}: Python to C"
    VERBATIM)
  add_custom_target(sage${module}_c DEPENDS "${stamp}")

  Python_add_library(${module} MODULE WITH_SOABI ${c_files})
  add_dependencies(${module} sage${module}_c)
  target_include_directories(${module} PRIVATE "${c_directory}" "${c_directory}/lib-rt")
  # Generated code: its warnings are nobody's.
  target_compile_options(${module} PRIVATE -w -fvisibility=hidden $<$<CONFIG:Release>:${optimisation}>)
  install(TARGETS ${module} LIBRARY DESTINATION ${destination})
endfunction()

sage_compile(sage_prefect.control_plane _control_plane sage_prefect/control_plane sage_prefect -O2)
# A third less time to build; what it calls is elsewhere.
sage_compile(sage_gateway _data_path gateway/sage_gateway sage_gateway -O1)
