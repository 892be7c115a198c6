# The user's flags (CXXFLAGS, LDFLAGS, CUDAFLAGS, NVCC_APPEND_FLAGS, ...) may ask for arithmetic that the kernels cannot
# work with, and that even reaches beyond them: GCC before 13 links crtfastmath.o for -Ofast and -ffast-math, which sets
# flush-to-zero for the whole process that loads the library. Such flags are overruled: later ones take them back, and
# what no later flag takes back is taken out. What came through all the same, from a compiler that is a script, say, is
# refused, by arithmetic.h in front of every source and by a look at the library.

# Takes out of a variable with flags what later flags do not take back.
function(hsb_overrule variable)
  set(flags "${${variable}}")
  string(REGEX REPLACE "(^|[ ,=])-Ofast" "\\1-O3" flags "${flags}")           # links crtfastmath.o whatever follows
  string(REGEX REPLACE "(^| )--?use_fast_math" "\\1" flags "${flags}")        # nvcc: has no negation
  if(NOT flags STREQUAL "${${variable}}")
    message(WARNING "hsbench needs IEEE 754 arithmetic: of ${variable}, \"${${variable}}\", \"${flags}\" is used")
    set(${variable} "${flags}" PARENT_SCOPE)
  endif()
endfunction()

set(hsb_ieee -fno-fast-math -fno-unsafe-math-optimizations -fno-associative-math -fno-reciprocal-math
             -fno-finite-math-only -fsigned-zeros)
include(CheckCXXCompilerFlag)
check_cxx_compiler_flag(-mno-daz-ftz HSB_HAS_NO_DAZ_FTZ)  # GCC 13, clang 17
if(HSB_HAS_NO_DAZ_FTZ)
  list(APPEND hsb_ieee -mno-daz-ftz)
endif()
list(JOIN hsb_ieee "," hsb_ieee_host)
set(hsb_ieee_nvcc --ftz=false --prec-div=true --prec-sqrt=true -Xcompiler=${hsb_ieee_host})

# Behind CMAKE_CXX_FLAGS and CMAKE_SHARED_LINKER_FLAGS, before the options of targets.
add_compile_options(
  "$<$<COMPILE_LANGUAGE:CXX>:${hsb_ieee}>"
  "$<$<COMPILE_LANGUAGE:CUDA>:${hsb_ieee_nvcc}>"
  "SHELL:-include \"${CMAKE_CURRENT_LIST_DIR}/arithmetic.h\"")
add_link_options(${hsb_ieee})  # CUDA libraries are linked by the host's compiler too
string(TOUPPER "${CMAKE_BUILD_TYPE}" hsb_build_type)
foreach(variable CMAKE_CXX_COMPILER_ARG1 CMAKE_CXX_FLAGS CMAKE_CXX_FLAGS_${hsb_build_type} CMAKE_SHARED_LINKER_FLAGS)
  hsb_overrule(${variable})
endforeach()

# Fails the build of a library that would set flush-to-zero.
function(hsb_refuse_crtfastmath library)
  add_custom_command(TARGET ${library} POST_BUILD COMMAND
    ${CMAKE_COMMAND} -DLIBRARY=$<TARGET_FILE:${library}> -P ${CMAKE_CURRENT_SOURCE_DIR}/no_crtfastmath.cmake VERBATIM)
endfunction()

# Once CUDA is enabled. nvcc reads two variables of the environment itself, one of them behind all that it is given.
macro(hsb_overrule_cuda)
  foreach(variable CMAKE_CUDA_FLAGS CMAKE_CUDA_FLAGS_${hsb_build_type})
    hsb_overrule(${variable})
  endforeach()
  set(environment)
  foreach(variable NVCC_PREPEND_FLAGS NVCC_APPEND_FLAGS)
    if(DEFINED ENV{${variable}})
      set(${variable} "$ENV{${variable}}")
      hsb_overrule(${variable})
      list(JOIN hsb_ieee_nvcc " " ieee)
      list(APPEND environment "${variable}=${${variable}} ${ieee}")
    endif()
  endforeach()
  if(environment)
    set(CMAKE_CUDA_COMPILER_LAUNCHER ${CMAKE_COMMAND} -E env ${environment} ${CMAKE_CUDA_COMPILER_LAUNCHER})
  endif()
endmacro()
