// A type as a value; a list of types, and what of them is looked up at compile time.
#pragma once

namespace hsb::cuda {

template <class T>
struct Tag {
    using Type = T;
};

template <class... T>
struct Types {
    static constexpr int kCount = sizeof...(T);
};

template <int Index, class List>
struct TypeAtOf;
template <class First, class... Rest>
struct TypeAtOf<0, Types<First, Rest...>> {
    using Type = First;
};
template <int Index, class First, class... Rest>
struct TypeAtOf<Index, Types<First, Rest...>> : TypeAtOf<Index - 1, Types<Rest...>> {};

template <int Index, class List>
using TypeAt = typename TypeAtOf<Index, List>::Type;

}  // namespace hsb::cuda
