# kvmemctl against a fake daemon, and the files of the package.
if(TARGET kvmemctl)
  add_test(NAME system.cli COMMAND ${Python3_EXECUTABLE} ${CMAKE_CURRENT_LIST_DIR}/cli.py
    ${CMAKE_BINARY_DIR} ${CMAKE_SOURCE_DIR})
  set_tests_properties(system.cli PROPERTIES LABELS system TIMEOUT 300)
endif()
add_test(NAME system.units COMMAND ${CMAKE_CURRENT_LIST_DIR}/units.sh
  ${CMAKE_BINARY_DIR} ${CMAKE_SOURCE_DIR})
set_tests_properties(system.units PROPERTIES LABELS system TIMEOUT 60 SKIP_RETURN_CODE 77)
