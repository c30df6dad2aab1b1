# find_package(batchnorm) of a checkout where cargo has built the libraries:
#
#   cargo rustc --release --lib --features capi --crate-type cdylib,staticlib
#   cmake -Dbatchnorm_DIR=<checkout>/cmake ...
#
# Targets: batchnorm::shared and batchnorm::static, as far as they have been built, and batchnorm::batchnorm, which is the
# shared one, or with batchnorm_STATIC the static one. Libraries that are elsewhere than in target/release are found by
# batchnorm_LIBRARY_DIR.

get_filename_component(_batchnorm_root "${CMAKE_CURRENT_LIST_DIR}" DIRECTORY)
set(batchnorm_LIBRARY_DIR "${_batchnorm_root}/target/release" CACHE PATH "where cargo has put the libraries")
option(batchnorm_STATIC "link batchnorm::batchnorm statically" OFF)

# What the library is called, and with a DLL what to link instead of it.
set(_batchnorm_shared "${CMAKE_SHARED_LIBRARY_PREFIX}batchnorm${CMAKE_SHARED_LIBRARY_SUFFIX}")
set(_batchnorm_static "${CMAKE_STATIC_LIBRARY_PREFIX}batchnorm${CMAKE_STATIC_LIBRARY_SUFFIX}")
set(_batchnorm_import "${batchnorm_LIBRARY_DIR}/batchnorm.dll.lib")

foreach(_batchnorm_kind shared static)
  set(_batchnorm_file "${batchnorm_LIBRARY_DIR}/${_batchnorm_${_batchnorm_kind}}")
  if(EXISTS "${_batchnorm_file}" AND NOT TARGET batchnorm::${_batchnorm_kind})
    string(TOUPPER ${_batchnorm_kind} _batchnorm_type)
    add_library(batchnorm::${_batchnorm_kind} ${_batchnorm_type} IMPORTED)
    set_target_properties(batchnorm::${_batchnorm_kind} PROPERTIES
      IMPORTED_LOCATION "${_batchnorm_file}"
      INTERFACE_INCLUDE_DIRECTORIES "${_batchnorm_root}/include")
  endif()
endforeach()

if(TARGET batchnorm::shared)
  # cargo gives the library no name of its own: programs look for its file's, not for the path that they were linked with.
  set_target_properties(batchnorm::shared PROPERTIES IMPORTED_NO_SONAME TRUE)
  if(EXISTS "${_batchnorm_import}")
    set_target_properties(batchnorm::shared PROPERTIES IMPORTED_IMPLIB "${_batchnorm_import}")
  endif()
endif()

if(TARGET batchnorm::static)
  # What Rust's standard library needs.
  if(WIN32)
    set(_batchnorm_needs "ws2_32;userenv;ntdll;bcrypt")
  else()
    include(CMakeFindDependencyMacro)
    set(THREADS_PREFER_PTHREAD_FLAG TRUE)
    find_dependency(Threads)
    set(_batchnorm_needs "Threads::Threads;${CMAKE_DL_LIBS};m")
  endif()
  set_target_properties(batchnorm::static PROPERTIES INTERFACE_LINK_LIBRARIES "${_batchnorm_needs}")
endif()

if(NOT TARGET batchnorm::batchnorm)
  if(TARGET batchnorm::static AND (batchnorm_STATIC OR NOT TARGET batchnorm::shared))
    set(_batchnorm_chosen batchnorm::static)
  elseif(TARGET batchnorm::shared AND NOT batchnorm_STATIC)
    set(_batchnorm_chosen batchnorm::shared)
  endif()
  if(_batchnorm_chosen)
    add_library(batchnorm::batchnorm INTERFACE IMPORTED)
    set_target_properties(batchnorm::batchnorm PROPERTIES INTERFACE_LINK_LIBRARIES "${_batchnorm_chosen}")
  else()
    set(batchnorm_FOUND FALSE)
    set(batchnorm_NOT_FOUND_MESSAGE
      "no library in ${batchnorm_LIBRARY_DIR}: cargo rustc --release --lib --features capi --crate-type cdylib,staticlib")
  endif()
endif()
