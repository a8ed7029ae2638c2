// What an instruction set that works on the layout kFields provides, made of its vectors.
#pragma once

#include "fields_product.h"
#include "fields_rows.h"

namespace {

template <class V>
constexpr ProductKernels fields_kernels(int64_t superblock_rows = 0) {
    return {kFields,         prepare_tiles<Fields, typename V::Reader>,
            V::rows,         fields_compute<V>,
            fields_exact<V>, superblocks_compute<FieldsEngine<V>>,
            fields_rows<V>,  decode_prepared<FieldsEngine<V>, typename V::Lanes>,
            superblock_rows, 2};
}

}  // namespace
