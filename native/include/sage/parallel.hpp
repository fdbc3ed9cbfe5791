// Threads for the length of one call: none outlives it, so fork() and interpreter shutdown are safe.
#pragma once

#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace sage {

// Processors that this process may use, or SAGE_NATIVE_THREADS if that is set.
unsigned default_threads();

// Runs work(0) .. work(workers - 1), work(0) on the calling thread; rethrows the first error.
// When the system refuses a thread, its share runs on the calling thread.
template <class Work>
void run_workers(unsigned workers, Work&& work) {
    std::exception_ptr error;
    std::mutex error_mutex;
    auto guarded = [&](unsigned worker) {
        try {
            work(worker);
        } catch (...) {
            const std::lock_guard lock(error_mutex);
            if (!error) error = std::current_exception();
        }
    };
    std::vector<std::thread> threads;
    threads.reserve(workers > 0 ? workers - 1 : 0);
    unsigned started = 1;
    try {
        for (; started < workers; ++started) threads.emplace_back(guarded, started);
    } catch (const std::system_error&) {
        // Out of threads: the rest runs below.
    }
    guarded(0);
    for (unsigned worker = started; worker < workers; ++worker) guarded(worker);
    for (auto& thread : threads) thread.join();
    if (error) std::rethrow_exception(error);
}

}  // namespace sage
