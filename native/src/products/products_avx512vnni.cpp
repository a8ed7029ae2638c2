#include "avx512_product.h"

extern const ProductKernels products_avx512vnni = avx512_products;
