use std::collections::BTreeSet;

use super::*;

/// One file on a disk that may lose whatever was not made durable.
#[derive(Clone, Default)]
struct ModelFile {
    /// What may be found under the final name after a crash; none for "no file".
    durable: Option<Vec<u8>>,
    temp: Vec<u8>,
    temp_synced: bool,
    renamed: bool,
}

impl ModelFile {
    /// Everything that may be found after a crash now.
    fn after_crash(&self) -> Vec<Option<Vec<u8>>> {
        let mut found = vec![self.durable.clone()];
        if self.renamed {
            if self.temp_synced {
                found.push(Some(self.temp.clone()));
            } else {
                // The name may be durable before the content.
                found.extend(
                    (0..self.temp.len())
                        .step_by(7)
                        .map(|len| Some(self.temp[..len].to_vec())),
                );
            }
        }
        found
    }
}

/// Cuts the power before step number `steps_left`.
struct Model<'a> {
    file: &'a mut ModelFile,
    steps_left: &'a std::cell::Cell<usize>,
    skip_sync: bool,
}

impl Model<'_> {
    fn step(&self) -> io::Result<()> {
        let left = self.steps_left.get();
        self.steps_left.set(left.saturating_sub(1));
        if left == 0 {
            Err(io::Error::other("power cut"))
        } else {
            Ok(())
        }
    }
}

impl Steps for Model<'_> {
    fn write_temp(&mut self, content: &[u8]) -> io::Result<()> {
        self.step()?;
        (self.file.temp, self.file.temp_synced) = (content.to_vec(), false);
        Ok(())
    }

    fn sync_temp(&mut self) -> io::Result<()> {
        self.step()?;
        self.file.temp_synced = !self.skip_sync;
        Ok(())
    }

    fn rename(&mut self) -> io::Result<()> {
        self.step()?;
        self.file.renamed = true;
        Ok(())
    }

    fn sync_directory(&mut self) -> io::Result<()> {
        self.step()?;
        if self.file.temp_synced {
            self.file.durable = Some(self.file.temp.clone());
            self.file.renamed = false;
        }
        Ok(())
    }
}

/// Everything that a start may find after power cuts at every step of the saves of "one" and "two".
fn outcomes(skip_sync: bool) -> BTreeSet<String> {
    let mut outcomes = BTreeSet::new();
    for cut in 0..=16 {
        let (mut state, mut mark) = (ModelFile::default(), ModelFile::default());
        let steps_left = std::cell::Cell::new(cut);
        for (seq, payload) in [(1, b"one"), (2, b"two")] {
            let mut state = Model {
                file: &mut state,
                steps_left: &steps_left,
                skip_sync,
            };
            let mut mark = Model {
                file: &mut mark,
                steps_left: &steps_left,
                skip_sync,
            };
            if save(&mut state, &mut mark, seq, payload).is_err() {
                break;
            }
        }
        for found in state.after_crash() {
            for marked in mark.after_crash() {
                let outcome = match judge(found.as_deref(), marked.as_deref()).1 {
                    Loaded::Fresh => "fresh".to_owned(),
                    Loaded::State(payload) => String::from_utf8(payload).unwrap(),
                    Loaded::Damaged(damage) => damage.to_string(),
                };
                // A save that returned is there: 8 steps make one.
                assert!(
                    skip_sync || cut < 8 || outcome != "fresh",
                    "save 1 was done, cut at {cut}"
                );
                assert!(skip_sync || cut < 16 || outcome == "two", "save 2 was done: {outcome}");
                outcomes.insert(outcome);
            }
        }
    }
    outcomes
}

#[test]
fn a_power_cut_at_any_step_leaves_the_old_state_or_the_new_one() {
    assert_eq!(
        outcomes(false),
        BTreeSet::from(["fresh", "one", "two"].map(str::to_owned))
    );
}

#[test]
fn control_without_the_sync_before_the_rename_a_power_cut_leaves_a_damaged_file() {
    assert!(outcomes(true).contains(&Damage::Checksum.to_string()));
}

fn directory_with(saves: &[&[u8]]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let (mut file, loaded) = StateFile::open(dir.path()).unwrap();
    assert_eq!(loaded, Loaded::Fresh);
    saves.iter().for_each(|payload| file.save(payload).unwrap());
    dir
}

fn load(dir: &tempfile::TempDir) -> Loaded {
    StateFile::open(dir.path()).unwrap().1
}

#[test]
fn the_newest_state_is_found_and_is_private() {
    use std::os::unix::fs::PermissionsExt;
    let dir = directory_with(&[b"one", b"two"]);
    assert_eq!(load(&dir), Loaded::State(b"two".to_vec()));
    for name in ["state", "state.mark"] {
        assert_eq!(
            fs::metadata(dir.path().join(name)).unwrap().permissions().mode() & 0o777,
            0o600
        );
    }
}

#[test]
fn every_flipped_bit_and_every_truncation_is_refused() {
    let dir = directory_with(&[b"some state"]);
    for (name, damage) in [("state", Damage::Checksum), ("state.mark", Damage::NoMark)] {
        let path = dir.path().join(name);
        let whole = fs::read(&path).unwrap();
        for bit in 0..whole.len() * 8 {
            let mut flipped = whole.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            fs::write(&path, flipped).unwrap();
            assert_eq!(load(&dir), Loaded::Damaged(damage.clone()), "bit {bit} of {name}");
        }
        for len in 0..whole.len() {
            fs::write(&path, &whole[..len]).unwrap();
            assert_eq!(load(&dir), Loaded::Damaged(damage.clone()), "{len} bytes of {name}");
        }
        fs::write(&path, whole).unwrap();
        assert_eq!(load(&dir), Loaded::State(b"some state".to_vec()));
    }
    fs::File::create(dir.path().join("state"))
        .unwrap()
        .set_len(1 << 32)
        .unwrap();
    assert_eq!(load(&dir), Loaded::Damaged(Damage::TooLong));
}

#[test]
fn an_old_copy_that_is_put_back_is_refused() {
    let dir = directory_with(&[b"granted"]);
    let old = fs::read(dir.path().join("state")).unwrap();
    StateFile::open(dir.path()).unwrap().0.save(b"revoked").unwrap();
    assert_eq!(load(&dir), Loaded::State(b"revoked".to_vec()));
    fs::write(dir.path().join("state"), old).unwrap();
    assert_eq!(load(&dir), Loaded::Damaged(Damage::RolledBack { found: 1, newest: 2 }));
    fs::remove_file(dir.path().join("state")).unwrap();
    assert_eq!(
        load(&dir),
        Loaded::Damaged(Damage::Checksum),
        "a state that vanished is not a fresh start"
    );
}

#[test]
fn a_damaged_file_is_kept_and_the_next_save_is_the_newest() {
    let dir = directory_with(&[b"one", b"two"]);
    fs::write(dir.path().join("state"), b"rubbish").unwrap();
    let (mut file, loaded) = StateFile::open(dir.path()).unwrap();
    assert_eq!(loaded, Loaded::Damaged(Damage::Checksum));
    let aside = file.set_aside(1_900_000_000).unwrap();
    assert_eq!(fs::read(aside).unwrap(), b"rubbish");
    file.save(b"three").unwrap();
    assert_eq!(load(&dir), Loaded::State(b"three".to_vec()));
}

#[test]
fn what_a_crash_left_behind_does_not_disturb() {
    let dir = directory_with(&[b"one"]);
    fs::write(dir.path().join("state.new"), vec![0xff; 100_000]).unwrap();
    StateFile::open(dir.path()).unwrap().0.save(b"two").unwrap();
    assert_eq!(load(&dir), Loaded::State(b"two".to_vec()));
}

#[test]
fn a_state_beyond_the_bound_is_not_saved() {
    let dir = directory_with(&[b"one"]);
    let (mut file, _) = StateFile::open(dir.path()).unwrap();
    assert!(file.save(&vec![0; STATE_LEN_MAX + 1]).is_err());
    assert_eq!(load(&dir), Loaded::State(b"one".to_vec()));
}
