// Calls of what cpu/each_isa.h made, for the running CPU; included behind it.

#if BACKSIGHT_HAS_TARGETS
#define BACKSIGHT_DISPATCH(bytes, call)        \
  do {                                         \
    if ((bytes) >= 64) return vectors64::call; \
    if ((bytes) >= 32) return vectors32::call; \
    return vectors16::call;                    \
  } while (false)
#else
#define BACKSIGHT_DISPATCH(bytes, call) return vectors16::call
#endif

// As many planes as a vector has lanes, of T or bytes, to lanes of T's size; and back, to the first
// `used` of them.
template <typename From, typename To>
void planes_to_lanes(const From* const* planes, int64_t count, To* to) {
  BACKSIGHT_DISPATCH(vector_bytes(), planes_to_lanes(planes, count, to));
}
template <typename From, typename To>
void lanes_to_planes(const From* from, int64_t count, To* const* planes, int64_t used) {
  BACKSIGHT_DISPATCH(vector_bytes(), lanes_to_planes(from, count, planes, used));
}
