// The extension module sage_prefect._native: bindings only, no logic.
#include <pybind11/pybind11.h>

PYBIND11_MODULE(_native, m) {
    m.doc() = "Native operators of SAGE.";
}
