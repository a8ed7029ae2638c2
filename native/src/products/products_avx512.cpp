#include "avx512_product.h"

extern const ProductKernels products_avx512 = avx512_products;
