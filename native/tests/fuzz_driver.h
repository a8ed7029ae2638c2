// The main function of a fuzz target where there is no libFuzzer: `fuzz_x corpus_folder seconds`
// runs every file of the folder, then for that time inputs made from them. An input that ends the
// program, or takes a minute, stays in the file fuzz_x.failed, which is an argument in place of the
// folder, and is printed, for where only the log is left.
#pragma once

#include <cstddef>
#include <cstdint>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#ifndef TRITLLM_LIBFUZZER

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

namespace {

using Bytes = std::vector<uint8_t>;

Bytes running;            // what the target is given now
std::string failed_file;  // where it stays if the target does not return

extern "C" void keep_what_was_running(int signal_number) {
    if (std::FILE *file = std::fopen(failed_file.c_str(), "wb")) {
        std::fwrite(running.data(), 1, running.size(), file);
        std::fclose(file);
        std::fprintf(stderr, "the input is in %s, and is\n", failed_file.c_str());
    }
    for (uint8_t byte : running) std::fprintf(stderr, "%02x", byte);
    std::fprintf(stderr, "\n");
    std::signal(signal_number, SIG_DFL);
    std::raise(signal_number);
}

void run(Bytes input) {
    running = std::move(input);
    alarm(60);
    LLVMFuzzerTestOneInput(running.data(), running.size());
}

// Another input from one or two of the corpus.
Bytes changed(const std::vector<Bytes> &corpus, std::mt19937_64 &random) {
    auto up_to = [&](size_t n) { return size_t(random() % n); };
    Bytes input = corpus[up_to(corpus.size())];
    if (up_to(4) == 0 || input.empty()) {  // all its own
        input.resize(6 + up_to(3000));
        for (uint8_t &byte : input) byte = uint8_t(random());
    }
    if (up_to(4) == 0) {  // its first part, and the end of another
        const Bytes &other = corpus[up_to(corpus.size())];
        input.resize(up_to(input.size()) + 1);
        if (!other.empty())
            input.insert(input.end(), other.begin() + up_to(other.size()), other.end());
    }
    for (size_t i = up_to(9); i > 0; i--) {
        uint8_t &byte = input[up_to(std::min(input.size(), size_t(up_to(2) ? 16 : 1 << 20)))];
        const uint8_t special[] = {0, 1, 121, 127, 128, 242, 243, 255};
        byte = uint8_t(up_to(2) ? random() : special[up_to(8)]);
    }
    if (up_to(8) == 0) input.resize(up_to(input.size() + 1));
    return input;
}

}  // namespace

int main(int argc, char **argv) {
    namespace fs = std::filesystem;
    if (argc < 2) {
        std::fprintf(stderr, "usage: %s corpus_folder_or_file [seconds]\n", argv[0]);
        return 2;
    }
    failed_file = std::string(argv[0]) + ".failed";
    for (int number : {SIGABRT, SIGSEGV, SIGFPE, SIGILL, SIGALRM})
        std::signal(number, keep_what_was_running);

    std::vector<fs::path> files;
    if (fs::is_directory(argv[1]))
        for (const auto &entry : fs::directory_iterator(argv[1])) files.push_back(entry.path());
    else
        files.push_back(argv[1]);
    std::sort(files.begin(), files.end());
    std::vector<Bytes> corpus;
    for (const fs::path &path : files) {
        std::ifstream file(path, std::ios::binary);
        corpus.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
        run(corpus.back());
    }
    if (corpus.empty()) {
        std::fprintf(stderr, "%s: no inputs\n", argv[1]);
        return 2;
    }

    const double seconds = argc > 2 ? std::atof(argv[2]) : 0;
    const auto start = std::chrono::steady_clock::now();
    std::mt19937_64 random(uint64_t(start.time_since_epoch().count()));
    long runs = 0;
    while (std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() <
           seconds) {
        run(changed(corpus, random));
        runs++;
    }
    std::printf("%zu inputs of the corpus, %ld others\n", corpus.size(), runs);
}

#endif
