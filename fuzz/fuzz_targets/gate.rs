#![no_main]

use engine::sql::gate::check;
use engine::wire::Role;

libfuzzer_sys::fuzz_target!(|sql: &str| {
    for role in [Role::Reader, Role::Writer, Role::Admin] {
        // That it ends, without a panic. What passes for a reader and what it does is tried by the gate's own test `reads`.
        let _ = check(sql, role);
    }
});
