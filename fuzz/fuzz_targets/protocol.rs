#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    node::flight::untrusted::read(bytes);
});
