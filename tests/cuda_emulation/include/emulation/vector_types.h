// dim3, the vector types that device code uses, and their make_ functions.
#pragma once

#define EMULATION_VECTOR2(name, element, alignment) \
  struct alignas(alignment) name {                  \
    element x, y;                                   \
  };                                                \
  constexpr name make_##name(element x, element y) { return {x, y}; }

#define EMULATION_VECTOR4(name, element) \
  struct alignas(16) name {              \
    element x, y, z, w;                  \
  };                                     \
  constexpr name make_##name(element x, element y, element z, element w) { return {x, y, z, w}; }

EMULATION_VECTOR2(short2, short, 4)
EMULATION_VECTOR2(ushort2, unsigned short, 4)
EMULATION_VECTOR2(int2, int, 8)
EMULATION_VECTOR2(uint2, unsigned, 8)
EMULATION_VECTOR2(float2, float, 8)
EMULATION_VECTOR2(double2, double, 16)
EMULATION_VECTOR2(longlong2, long long, 16)
EMULATION_VECTOR2(ulonglong2, unsigned long long, 16)
EMULATION_VECTOR4(int4, int)
EMULATION_VECTOR4(uint4, unsigned)
EMULATION_VECTOR4(float4, float)

#undef EMULATION_VECTOR2
#undef EMULATION_VECTOR4

struct uint3 {
  unsigned x, y, z;
};
constexpr uint3 make_uint3(unsigned x, unsigned y, unsigned z) { return {x, y, z}; }

struct float3 {
  float x, y, z;
};
constexpr float3 make_float3(float x, float y, float z) { return {x, y, z}; }

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
  constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
  constexpr operator uint3() const { return {x, y, z}; }
};
