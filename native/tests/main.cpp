#include "check.hpp"

int main() {
    for (const auto& test : sage_test::cases()) {
        const int before = sage_test::failures();
        try {
            test.run();
        } catch (const std::exception& error) {
            sage_test::report(false, error.what(), test.name, 0);
        }
        std::printf("%s %s\n", sage_test::failures() == before ? "ok  " : "FAIL", test.name);
    }
    std::printf("%zu tests, %d failures\n", sage_test::cases().size(), sage_test::failures());
    return sage_test::failures() == 0 ? 0 : 1;
}
