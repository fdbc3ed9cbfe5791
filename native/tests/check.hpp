// A test runner of one page: TEST registers, CHECK reports file and line and goes on.
#pragma once

#include <cstdio>
#include <exception>
#include <string>
#include <vector>

namespace sage_test {

struct Case {
    const char* name;
    void (*run)();
};

inline std::vector<Case>& cases() {
    static std::vector<Case> all;
    return all;
}

inline int& failures() {
    static int count = 0;
    return count;
}

struct Registration {
    Registration(const char* name, void (*run)()) { cases().push_back({name, run}); }
};

inline void report(bool good, const char* what, const char* file, int line) {
    if (good) return;
    ++failures();
    std::fprintf(stderr, "%s:%d: failed: %s\n", file, line, what);
}

}  // namespace sage_test

#define TEST(name)                                                        \
    static void test_##name();                                            \
    static const sage_test::Registration registration_##name(#name, test_##name); \
    static void test_##name()

#define CHECK(...) sage_test::report(static_cast<bool>(__VA_ARGS__), #__VA_ARGS__, __FILE__, __LINE__)

#define CHECK_THROWS(type, expression)                                          \
    do {                                                                        \
        bool thrown = false;                                                    \
        try {                                                                   \
            static_cast<void>(expression);                                      \
        } catch (const type&) {                                                 \
            thrown = true;                                                      \
        }                                                                       \
        sage_test::report(thrown, #expression " throws " #type, __FILE__, __LINE__); \
    } while (false)
