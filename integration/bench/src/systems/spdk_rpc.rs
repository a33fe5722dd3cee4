//! SPDK's own control interface: JSON-RPC 2.0 over a unix socket, one object after the other without a delimiter.

use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use serde_json::{Value, json};

/// How long an answer may take. A malloc bdev is cleared before it is told.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);
/// Longest answer.
const ANSWER_LEN_MAX: u64 = 1 << 20;

/// A connection.
pub struct Rpc {
    stream: UnixStream,
    id: u64,
}

impl Rpc {
    /// Connects to a running SPDK program.
    pub fn connect(socket: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(ANSWER_LIMIT))?;
        Ok(Self { stream, id: 0 })
    }

    /// Calls a method and returns its result. An error that SPDK answers is an error here, in its own words.
    pub fn call(&mut self, method: &str, parameters: &Value) -> io::Result<Value> {
        self.id += 1;
        let mut request = json!({ "jsonrpc": "2.0", "id": self.id, "method": method });
        if !parameters.is_null() {
            request["params"] = parameters.clone();
        }
        self.stream.write_all(request.to_string().as_bytes())?;
        // the reader ends with the object, not with the connection
        let limited = Read::by_ref(&mut self.stream).take(ANSWER_LEN_MAX);
        let mut objects = serde_json::Deserializer::from_reader(limited).into_iter::<Value>();
        let answer = objects.next().ok_or(io::ErrorKind::UnexpectedEof)??;
        if answer["id"] != self.id {
            return Err(io::Error::other(format!("{method}: answered something else: {answer}")));
        }
        match answer.get("error") {
            Some(error) => Err(io::Error::other(format!("{method}: {}", error["message"]))),
            None => Ok(answer["result"].clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::net::UnixListener, thread};

    use super::*;

    /// Answers each call with the next of `answers`, its id put in.
    fn server(path: &Path, answers: &'static [&'static str]) -> io::Result<thread::JoinHandle<Vec<String>>> {
        let listener = UnixListener::bind(path)?;
        Ok(thread::spawn(move || {
            let mut asked = Vec::new();
            let Ok((mut stream, _)) = listener.accept() else {
                return asked;
            };
            for answer in answers {
                let mut bytes = [0; 4096];
                let Ok(len) = stream.read(&mut bytes) else { break };
                asked.push(String::from_utf8_lossy(&bytes[..len]).into_owned());
                let _ = stream.write_all(answer.as_bytes());
            }
            asked
        }))
    }

    #[test]
    fn results_and_errors_are_told_apart() -> Result<(), Box<dyn std::error::Error>> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("rpc.sock");
        let asked = server(
            &path,
            &[
                "{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":\"Null0\"}",
                "{\"jsonrpc\":\"2.0\",\"id\":2,\"error\":{\"code\":-17,\"message\":\"File exists\"}}",
                "{\"jsonrpc\":\"2.0\",\"id\":9,\"result\":true}",
            ],
        )?;
        let mut rpc = Rpc::connect(&path)?;
        assert_eq!(rpc.call("bdev_null_create", &json!({ "name": "Null0" }))?, "Null0");
        let refused = rpc.call("bdev_null_create", &json!({})).map_err(|e| e.to_string());
        assert_eq!(refused, Err("bdev_null_create: \"File exists\"".into()));
        assert!(rpc.call("spdk_get_version", &Value::Null).is_err());
        let asked = asked.join().unwrap_or_default();
        assert!(asked[0].contains("\"params\":{\"name\":\"Null0\"}"), "{asked:?}");
        assert!(!asked[2].contains("params"), "{asked:?}");
        Ok(())
    }
}
