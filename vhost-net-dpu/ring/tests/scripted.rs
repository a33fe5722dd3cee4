//! The fuzz target's invariants over its corpus and over random scripts.

use proptest::prelude::*;

#[path = "../fuzz/scripted_ring.rs"]
mod scripted_ring;

#[test]
fn the_corpus_holds() {
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/scripted_ring");
    let mut count = 0;
    for entry in std::fs::read_dir(corpus).unwrap() {
        scripted_ring::run(&std::fs::read(entry.unwrap().path()).unwrap());
        count += 1;
    }
    assert!(count >= 10, "only {count} files in {corpus}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn any_script_gets_chains_inside_memory_or_one_error(script in prop::collection::vec(any::<u8>(), 0..400)) {
        scripted_ring::run(&script);
    }

    /// Descriptor tables of any content, each head popped from a ring of its own.
    #[test]
    fn any_descriptor_table_gives_chains_inside_memory_or_an_error(
        features in any::<u8>(),
        table in prop::collection::vec(any::<[u8; 5]>(), 8),
        indirect in prop::collection::vec(any::<[u8; 5]>(), 8),
        head in 0u8..9,
    ) {
        let mut script = vec![features];
        for (index, bytes) in (0u8..).zip(&table) {
            script.extend([0, index]);
            script.extend(bytes);
        }
        for (index, bytes) in (0u8..).zip(&indirect) {
            script.extend([1, index]);
            script.extend(bytes);
        }
        script.extend([2, head, 4, 4]);
        scripted_ring::run(&script);
    }
}
