// y = x W^T with AVX2: eight rows a vector.
#include "avx2_vectors.h"

extern const ProductKernels products_avx2 = fields_kernels<Avx2Products>(48);
