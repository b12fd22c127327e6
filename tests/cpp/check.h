// CHECK for the test programs: prints what failed, and main() returns check_result().
#pragma once

#include <cstdio>

inline int failed_checks = 0;

inline void report_failure(const char* file, int line, const char* what, const char* where) {
    if (++failed_checks <= 20)
        std::fprintf(stderr, "%s:%d: failed: %s %s\n", file, line, what, where);
}

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition))                                                                                              \
            report_failure(__FILE__, __LINE__, #condition, "");                                                        \
    } while (0)
// `where`: a string that names the case.
#define CHECK_IN(where, condition)                                                                                     \
    do {                                                                                                               \
        if (!(condition))                                                                                              \
            report_failure(__FILE__, __LINE__, #condition, (where).c_str());                                           \
    } while (0)

inline int check_result() {
    std::printf(failed_checks ? "%d checks failed\n" : "all checks passed\n", failed_checks);
    return failed_checks != 0;
}
