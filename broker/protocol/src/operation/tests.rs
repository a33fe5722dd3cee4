use outboard_controls::Off;

use super::*;

const NOW: u64 = 1_000_000_000;

fn id(n: u128) -> OperationId {
    OperationId(uuid::Uuid::from_u128(n))
}

fn hash(request: &str) -> RequestHash {
    RequestHash::of("host", &request)
}

fn done() -> Table {
    let mut table = Table::new(100);
    table.record(id(1), hash("attach"), b"ok".to_vec(), NOW);
    table
}

#[test]
fn a_repeat_gets_the_stored_result_for_seven_days_and_is_then_refused() {
    let mut table = done();
    assert_eq!(table.find(id(2), hash("attach"), NOW), Ok(Standing::New));
    for age in [0, 1, RESULT_KEPT_S - 1] {
        table.sweep(NOW + age);
        assert_eq!(table.find(id(1), hash("attach"), NOW + age), Ok(Standing::Done(b"ok")));
    }
    for age in [RESULT_KEPT_S, ID_KEPT_S - 1] {
        table.sweep(NOW + age);
        let refusal = table.find(id(1), hash("attach"), NOW + age).unwrap_err();
        assert_eq!(refusal.code, Code::OperationExpired);
    }
    // Setting the clock back does not bring the result back.
    assert_eq!(
        table.find(id(1), hash("attach"), NOW).unwrap_err().code,
        Code::OperationExpired
    );
    table.sweep(NOW + ID_KEPT_S);
    assert_eq!(table.entries().count(), 0);
}

#[test]
fn another_request_or_initiator_under_the_same_id_is_a_conflict() {
    let table = done();
    for other in [hash("release"), RequestHash::of("other host", &"attach")] {
        assert_eq!(table.find(id(1), other, NOW).unwrap_err().code, Code::OperationConflict);
    }
    assert_eq!(table.find(id(1), hash("attach"), NOW), Ok(Standing::Done(b"ok")));
}

#[test]
fn control_without_the_replay_check_a_repeat_is_done_again() {
    let table = done();
    let _off = Off::here(Check::OperationReplay);
    assert_eq!(table.find(id(1), hash("attach"), NOW), Ok(Standing::New));
}

#[test]
fn the_table_is_bounded_and_forgets_the_oldest() {
    let mut table = Table::new(3);
    for n in 0..10 {
        table.record(id(u128::from(100 - n)), hash("attach"), b"ok".to_vec(), NOW + n);
    }
    let kept: Vec<_> = table.entries().map(|e| e.done_unix_s - NOW).collect();
    assert_eq!(kept, [9, 8, 7]);
    let reloaded = Table::load(table.entries().cloned().collect(), 2);
    assert_eq!(reloaded.entries().count(), 2);
}

#[test]
fn the_hash_is_of_the_canonical_request() {
    // SHA-256 of 82 64 "host" 66 "attach".
    let expected = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, b"\x82\x64host\x66attach");
    assert_eq!(hash("attach").0, expected.as_ref());
}
