use std::io::Write;

use super::*;

fn pair(timeout_ms: u64) -> (UnixStream, Connection) {
    let (stream, other) = UnixStream::pair().unwrap();
    (
        stream,
        Connection::with_timeout(other, Duration::from_millis(timeout_ms)),
    )
}

fn header(request: u32, flags: u32, len: u32) -> Vec<u8> {
    [request, flags, len].into_iter().flat_map(u32::to_ne_bytes).collect()
}

#[test]
fn a_message_that_never_ends_is_given_up() {
    for sent in [1, 11, 12, 15] {
        let (mut stream, connection) = pair(50);
        let mut message = header(8, FLAG_VERSION, 8);
        message.extend([0; 8]);
        stream.write_all(&message[..sent]).unwrap();
        let start = Instant::now();
        assert!(matches!(connection.receive(), Err(SessionError::Stalled)));
        assert!(start.elapsed() >= Duration::from_millis(50));
    }
}

#[test]
fn a_message_that_does_not_begin_is_waited_for() {
    let (mut stream, connection) = pair(20);
    let sender = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(100));
        stream.write_all(&header(1, FLAG_VERSION | FLAG_NEED_REPLY, 0)).unwrap();
        stream
    });
    let frame = connection.receive().unwrap().unwrap();
    assert_eq!((frame.request, frame.need_reply, frame.body.len()), (1, true, 0));
    drop(sender.join().unwrap());
    assert!(connection.receive().unwrap().is_none());
}

#[test]
fn the_next_message_is_left_where_it_is() {
    let (mut stream, connection) = pair(1000);
    let mut bytes = header(5, FLAG_VERSION, 3);
    bytes.extend(b"abc");
    bytes.extend(header(6, FLAG_VERSION, 1));
    bytes.extend(b"d");
    stream.write_all(&bytes).unwrap();
    assert_eq!(connection.receive().unwrap().unwrap().body, b"abc");
    assert_eq!(connection.receive().unwrap().unwrap().body, b"d");
}

#[test]
fn a_stream_that_ends_within_a_message_is_an_error() {
    for sent in [1, 12] {
        let (mut stream, connection) = pair(1000);
        stream.write_all(&header(5, FLAG_VERSION, 3)[..sent]).unwrap();
        drop(stream);
        assert!(matches!(connection.receive(), Err(SessionError::Truncated)));
    }
}

#[test]
fn a_reply_that_nobody_reads_is_given_up() {
    let (stream, connection) = pair(50);
    let error = loop {
        if let Err(error) = connection.reply(1, &[0; 4096]) {
            break error;
        }
    };
    assert!(matches!(error, SessionError::Stalled), "{error}");
    drop(stream);
    assert!(matches!(
        connection.reply(1, &[]),
        Err(SessionError::Socket { call: "sendmsg", .. })
    ));
}
