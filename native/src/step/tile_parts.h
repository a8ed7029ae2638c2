// How threads share the tiles of products.
#pragma once

#include <algorithm>
#include <cstdint>

namespace {

// Half of the tiles in a large part for each thread, so that memory is read in long runs, the others
// in small ones, so that all are done at about the same time.
struct TileParts {
    static constexpr int64_t kTogether = 4;  // tiles that some kernels take at a time

    int64_t tiles, large, n_large, small;

    TileParts(int64_t all, int threads) : tiles(all) {
        large = threads > 1 ? all / (2 * threads) / kTogether * kTogether : all;
        n_large = large ? threads : 0;
        small = (all / (32 * threads) + kTogether) / kTogether * kTogether;
    }
    int64_t count() const { return n_large + (tiles - n_large * large + small - 1) / small; }
    int64_t begin(int64_t part) const {
        const int64_t at = std::min(part, n_large) * large;
        return std::min(tiles, at + std::max<int64_t>(part - n_large, 0) * small);
    }
};

// Of several matrices of as many tiles each, all of which are multiplied by few rows: parts of about
// the same size, each of one matrix.
struct EvenParts {
    static constexpr int64_t kAThread = 32;

    int64_t tiles, matrices, together, of_matrix;

    EvenParts(int64_t of_one, int64_t n, int threads) : tiles(of_one), matrices(n) {
        const int64_t k = TileParts::kTogether;
        together = threads > 1 ? (tiles * n / (kAThread * threads) + k) / k * k : tiles;
        of_matrix = (tiles + together - 1) / together;
    }
    int64_t count() const { return matrices * of_matrix; }
    int64_t matrix(int64_t part) const { return part / of_matrix; }
    int64_t begin(int64_t part) const { return part % of_matrix * together; }
    int64_t end(int64_t part) const { return std::min(tiles, begin(part) + together); }
};

}  // namespace
