// The table of instruction sets. To add one: its files in CMakeLists.txt, its test and row here.
#include "cpu/isa.h"

#include <cstdint>
#include <initializer_list>
#include <iterator>

#if defined(__x86_64__) || defined(_M_X64)
#define TRITLLM_X86
#if defined(_MSC_VER)
#include <intrin.h>
#else
#include <cpuid.h>
#endif
#endif

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#if defined(__aarch64__)
#include <sys/auxv.h>
#endif
#endif

namespace {

// --- What this machine can run ------------------------------------------------------------------

bool always(int) { return true; }

#if defined(TRITLLM_X86)

enum Word { kEax, kEbx, kEcx, kEdx };

void cpuid(int leaf, uint32_t *word, int subleaf = 0) {
#if defined(_MSC_VER)
    __cpuidex(reinterpret_cast<int *>(word), leaf, subleaf);
#else
    __cpuid_count(leaf, subleaf, word[kEax], word[kEbx], word[kEcx], word[kEdx]);
#endif
}

// Whether the processor has all of these bits in a word of a leaf.
bool has(int leaf, Word word, std::initializer_list<int> bits) {
    uint32_t highest[4], found[4];
    cpuid(0, highest);
    if (int(highest[kEax]) < leaf) return false;
    cpuid(leaf, found);
    for (int bit : bits)
        if (!(found[word] >> bit & 1)) return false;
    return true;
}

// Whether the system keeps these registers when threads take turns.
bool keeps(uint64_t state) {
#if defined(_MSC_VER)
    const uint64_t enabled = _xgetbv(0);
#else
    uint32_t low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    const uint64_t enabled = uint64_t(high) << 32 | low;
#endif
    return (enabled & state) == state;
}

bool runs_avx2(int) {  // FMA, OSXSAVE, AVX, F16C; AVX2
    return has(1, kEcx, {12, 27, 28, 29}) && keeps(0x06) && has(7, kEbx, {5});
}

bool runs_avxvnni(int) {  // VNNI of 256 bits
    uint32_t found[4];
    if (!runs_avx2(0)) return false;
    cpuid(7, found, 1);
    return found[kEax] >> 4 & 1;
}

bool runs_avx512vnni(int) {  // F, DQ, BW, VL; VNNI
    return runs_avx2(0) && has(7, kEbx, {16, 17, 30, 31}) && has(7, kEcx, {11}) && keeps(0xe6);
}

bool runs_avx512(int) {  // and VBMI
    return runs_avx512vnni(0) && has(7, kEcx, {1});
}

// AMX needs its tiles, their int8 products, and the system's permission: Linux gives it when asked.
bool runs_amx(int) {
#if TRITLLM_BUILDS_AMX && defined(__linux__)
    constexpr int kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return runs_avx512(0) && has(7, kEdx, {24, 25}) &&
           syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
#else
    return false;
#endif
}

#else

bool runs_avx2(int) { return false; }
bool runs_avxvnni(int) { return false; }
bool runs_avx512vnni(int) { return false; }
bool runs_avx512(int) { return false; }
bool runs_amx(int) { return false; }

#endif

// Every AArch64 runs the codec and the step; products need the dot-product extension.
bool runs_neon(int family) {
#if defined(__aarch64__) && defined(__linux__)
    constexpr unsigned long kDotProduct = 1ul << 20;  // HWCAP_ASIMDDP
    return family != TRITLLM_PRODUCTS || getauxval(AT_HWCAP) & kDotProduct;
#elif defined(__aarch64__) && defined(__APPLE__)
    return family >= 0;
#elif defined(__aarch64__)
    return family != TRITLLM_PRODUCTS;
#else
    return family < 0;
#endif
}

}  // namespace

// --- What this build has: CMakeLists.txt defines TRITLLM_BUILDS_<SET> as 1 or 0 -------------------

#define TRITLLM_DECLARE(set)                    \
    extern const CodecKernels codec_##set;      \
    extern const ProductKernels products_##set; \
    extern const StepKernels step_##set;

TRITLLM_DECLARE(scalar)
TRITLLM_DECLARE(avx2)
TRITLLM_DECLARE(avxvnni)
TRITLLM_DECLARE(avx512vnni)
TRITLLM_DECLARE(avx512)
TRITLLM_DECLARE(amx)
TRITLLM_DECLARE(neon)

// The address of a set's functions, null in a build without the set.
#define TRITLLM_OWN(built, kernels) TRITLLM_OWN_EXPANDED(built, kernels)
#define TRITLLM_OWN_EXPANDED(built, kernels) TRITLLM_OWN_##built(kernels)
#define TRITLLM_OWN_0(kernels) nullptr
#define TRITLLM_OWN_1(kernels) &kernels

namespace {

struct InstructionSet {
    const char *name;
    bool (*runs_here)(int family);
    // Null where the build lacks it, or where the set has no functions of its own (see `serving`).
    const CodecKernels *codec;
    const ProductKernels *products;
    const StepKernels *step;

    bool has_own(int family) const {
        switch (family) {
            case TRITLLM_CODEC: return codec;
            case TRITLLM_PRODUCTS: return products;
            case TRITLLM_STEP: return step;
            default: return false;
        }
    }
};

// Of those that one machine can run, the later is the faster. A row's number names the set within
// one process and is written to no file.
const InstructionSet kTable[] = {
    {"scalar", always, &codec_scalar, &products_scalar, &step_scalar},
    {"avx2", runs_avx2, TRITLLM_OWN(TRITLLM_BUILDS_AVX2, codec_avx2),
     TRITLLM_OWN(TRITLLM_BUILDS_AVX2, products_avx2), TRITLLM_OWN(TRITLLM_BUILDS_AVX2, step_avx2)},
    {"avxvnni", runs_avxvnni, nullptr, TRITLLM_OWN(TRITLLM_BUILDS_AVXVNNI, products_avxvnni),
     nullptr},
    {"avx512vnni", runs_avx512vnni, TRITLLM_OWN(TRITLLM_BUILDS_AVX512VNNI, codec_avx512vnni),
     TRITLLM_OWN(TRITLLM_BUILDS_AVX512VNNI, products_avx512vnni),
     TRITLLM_OWN(TRITLLM_BUILDS_AVX512VNNI, step_avx512vnni)},
    {"avx512", runs_avx512, TRITLLM_OWN(TRITLLM_BUILDS_AVX512, codec_avx512),
     TRITLLM_OWN(TRITLLM_BUILDS_AVX512, products_avx512),
     TRITLLM_OWN(TRITLLM_BUILDS_AVX512, step_avx512)},
    {"amx", runs_amx, nullptr, TRITLLM_OWN(TRITLLM_BUILDS_AMX, products_amx), nullptr},
    {"neon", runs_neon, TRITLLM_OWN(TRITLLM_BUILDS_NEON, codec_neon),
     TRITLLM_OWN(TRITLLM_BUILDS_NEON, products_neon), TRITLLM_OWN(TRITLLM_BUILDS_NEON, step_neon)},
};
constexpr int kSets = int(std::size(kTable));
constexpr int kFamilies = 3;

// serving[isa][family]: the set whose functions run, -1 for none. A set that runs here and has no
// functions of its own for a family takes those of the row before it.
struct Choice {
    int serving[kSets][kFamilies];

    Choice() {
        for (int isa = 0; isa < kSets; isa++)
            for (int family = 0; family < kFamilies; family++) {
                const bool runs = kTable[isa].runs_here(family);
                const bool own = kTable[isa].has_own(family);
                serving[isa][family] = !runs ? -1 : own ? isa : serving[isa - 1][family];
            }
    }
};

}  // namespace

int tritllm_isa_serving(int isa, int family) {
    static const Choice choice;
    if (isa < 0 || isa >= kSets || family < 0 || family >= kFamilies) return -1;
    return choice.serving[isa][family];
}

const char *tritllm_isa_name(int isa) {
    return isa < 0 || isa >= kSets ? nullptr : kTable[isa].name;
}

const CodecKernels *codec_kernels(int isa) {
    const int serving = tritllm_isa_serving(isa, TRITLLM_CODEC);
    return serving < 0 ? nullptr : kTable[serving].codec;
}

const ProductKernels *product_kernels(int isa) {
    const int serving = tritllm_isa_serving(isa, TRITLLM_PRODUCTS);
    return serving < 0 ? nullptr : kTable[serving].products;
}

const StepKernels *step_kernels(int isa) {
    const int serving = tritllm_isa_serving(isa, TRITLLM_STEP);
    return serving < 0 ? nullptr : kTable[serving].step;
}
