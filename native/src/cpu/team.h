// Threads that share one call.
#pragma once

// Runs work(data) on `threads` threads at once, the caller's among them, and waits for all. Work
// must be such that any number of threads, one included, does all of it.
void run_team(int threads, void (*work)(void *), void *data);

// The GOMP_parallel of an OpenMP runtime to use in place of own threads, or null.
void use_openmp(void *gomp_parallel);
