//! Replays the fuzz target's corpus.

#[path = "../fuzz/decode_any.rs"]
mod decode_any;

use std::{fs, path::Path};

#[test]
fn the_fuzz_corpus_decodes_as_its_file_names_say() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/decode");
    let mut accepted = 0;
    for entry in fs::read_dir(&directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let is_message = decode_any::decode_any(&fs::read(&path).unwrap());
        // What a fuzzer found has a hash for a name and may be either.
        let by_hand = name.contains('_') || name == "token" || name == "frames";
        let refused = name.starts_with("refused_") || name == "frames_length_beyond_bound";
        assert!(
            !by_hand || is_message != refused,
            "{name} was {}",
            if is_message { "accepted" } else { "refused" }
        );
        accepted += usize::from(is_message);
    }
    assert!(accepted >= 24, "only {accepted} files of the corpus are messages");
}
