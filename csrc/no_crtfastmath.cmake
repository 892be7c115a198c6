# cmake -DLIBRARY=... -P no_crtfastmath.cmake: fails for a library that a compiler's own ways gave GCC's crtfastmath.o.
file(STRINGS "${LIBRARY}" found REGEX "set_fast_math" LIMIT_COUNT 1)
if(found)
  message(FATAL_ERROR "hsbench needs IEEE 754 arithmetic: ${LIBRARY} was linked with crtfastmath.o, which sets "
                      "flush-to-zero for the whole process that loads it: link without -Ofast and -ffast-math")
endif()
