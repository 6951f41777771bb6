//! Mappings of files and of shared memory: what is seen through them after a restart is what was there at the
//! checkpoint, and what could be done with them can be done.

mod harness;

use harness::{Build, Way, Who, survive};

macro_rules! mappings {
    ($($test:ident: $kind:literal;)*) => {$(
        #[test]
        fn $test() {
            survive(Who::Me, Way::SaveStop, "mappings", Build::Pie, &[$kind]);
            survive(Who::Nobody, Way::LaunchContinue, "mappings", Build::Pie, &[$kind]);
            survive(Who::Nobody, Way::Launch, "mappings", Build::Static, &[$kind]);
        }
    )*};
}

mappings! {
    a_guard_in_a_mapped_file_is_not_its_end: "guard";
    a_shared_file_can_be_made_writable_again: "protection";
    there_is_nothing_behind_the_end_of_a_file: "end";
    flags_of_mappings_stay: "flags";
}
