// A parallel loop that is safe where torch's own is not: no parallel region at one thread, none in a forked child.
#pragma once

#include <cstdint>
#include <functional>

namespace advfast {

// Calls body(part, begin, end) for `threads` consecutive parts of [0, units); at most one part a thread.
void parallel_for(int64_t units, int threads, const std::function<void(int, int64_t, int64_t)>& body);

// At most `threads`: with few values a second thread costs more than it brings.
int useful_threads(int threads, int64_t values);

} // namespace advfast
