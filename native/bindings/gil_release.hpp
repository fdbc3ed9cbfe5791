// Gives up the GIL for a scope, also when the interpreter shuts down meanwhile.
#pragma once

#include <Python.h>
#include <unistd.h>

#include <cxxabi.h>

// Until Python 3.14 a daemon thread that asks for the GIL of a finalizing interpreter is ended by
// pthread_exit(), whose unwinding through C++ frames ends the process with abort(). Like 3.14, we
// let such a thread sleep until the process is gone: it holds nothing that exit waits for.
class GilRelease {
public:
    GilRelease() : state_(PyEval_SaveThread()) {}
    ~GilRelease() {
#if defined(__GLIBCXX__)
        try {
            PyEval_RestoreThread(state_);
        } catch (abi::__forced_unwind&) {
            for (;;) ::pause();
        }
#else
        PyEval_RestoreThread(state_);
#endif
    }
    GilRelease(const GilRelease&) = delete;
    GilRelease& operator=(const GilRelease&) = delete;

private:
    PyThreadState* state_;
};
