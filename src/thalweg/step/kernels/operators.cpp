// The operators as a compiled step calls them: tensors by handle, the result allocated here. The kernel of small.cpp
// is a library of its own, with optimisations that a program's outer code is compiled without.
void thalweg_product_small(const float* a, int64_t am, int64_t ak, const float* b, int64_t bk, int64_t bn, float* o,
                           int64_t M, int64_t N, int64_t K);
AOTITorchError aoti_torch_cpu__linear_pointwise(AtenTensorHandle, AtenTensorHandle, AtenTensorHandle*, const char*,
                                                const double**, int64_t, const char**, AtenTensorHandle*);
AOTITorchError aoti_torch_cpu_bernoulli__float(AtenTensorHandle, double, AtenGeneratorHandle*);

AOTITorchError aoti_torch_cpu_product_small(AtenTensorHandle a, AtenTensorHandle b, AtenTensorHandle* out) {
  int64_t *as, *at, *bs, *bt;
  void *ap, *bp, *op;
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_sizes(a, &as));
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_strides(a, &at));
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_sizes(b, &bs));
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_strides(b, &bt));
  const int64_t size[2] = {as[0], bs[1]}, stride[2] = {bs[1], 1};
  AOTI_TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(2, size, stride, aoti_torch_dtype_float32(), aoti_torch_device_type_cpu(), 0, out));
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_data_ptr(a, &ap));
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_data_ptr(b, &bp));
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_data_ptr(*out, &op));
  thalweg_product_small((const float*)ap, at[0], at[1], (const float*)bp, bt[0], bt[1], (float*)op, as[0], bs[1], as[1]);
  return 0;
}

// oneDNN takes the second factor as a weight [n, k]: b seen the other way round, where it lies.
AOTITorchError aoti_torch_cpu_product_onednn(AtenTensorHandle a, AtenTensorHandle b, AtenTensorHandle* out) {
  int64_t *size, *stride, offset;
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_sizes(b, &size));
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_strides(b, &stride));
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_offset(b, &offset));
  const int64_t turned_size[2] = {size[1], size[0]}, turned_stride[2] = {stride[1], stride[0]};
  AtenTensorHandle turned;
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch__reinterpret_tensor(b, 2, turned_size, turned_stride, offset, &turned));
  const char* algorithm = "";
  AOTITorchError failed = aoti_torch_cpu__linear_pointwise(a, turned, nullptr, "none", nullptr, 0, &algorithm, out);
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_delete_tensor_object(turned));
  return failed;
}

AOTITorchError aoti_torch_cpu_held_scalar(AtenTensorHandle a, AtenTensorHandle* out) {
  void *from, *to;
  AOTI_TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(0, nullptr, nullptr, aoti_torch_dtype_float64(), aoti_torch_device_type_cpu(), 0, out));
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_data_ptr(a, &from));
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_data_ptr(*out, &to));
  *(double*)to = *(const double*)from;
  return 0;
}

AOTITorchError aoti_torch_cpu_drawn(const int64_t* size, int64_t dimensions, const int64_t* stride, int64_t,
                                    int32_t dtype, double p, AtenTensorHandle* out) {
  AOTI_TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(dimensions, size, stride, dtype, aoti_torch_device_type_cpu(), 0, out));
  return aoti_torch_cpu_bernoulli__float(*out, p, nullptr);
}
