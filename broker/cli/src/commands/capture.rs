//! `capture`: frames that pass a port, into a pcapng file.

use std::{
    fs::File,
    io::{BufWriter, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use outboard_api::capture::{CaptureRequest, CaptureView, CapturedView, SECONDS_DEFAULT, SNAPLEN_DEFAULT};
use outboard_packet::parse_filter;
use outboard_protocol::id::Name;
use serde::Serialize;
use serde_json::{Value, json};

use super::show;
use crate::{client::Client, error::CliError, options::Global, pcapng};

/// Pause before the card is asked again that had nothing.
const PAUSE: Duration = Duration::from_millis(200);

/// `outboard capture`.
#[derive(Debug, Args)]
#[command(after_help = "\
Frames are those that the card's switch sees at the port, both ways: 'in' is what its guest gets,
'out' what its guest sends. What was dropped is there too, with the reason as the packet's comment.
The capture ends after --count or --seconds, or with Ctrl-C. It costs the port's network some speed
while it runs; frames that come faster than they are read are counted as lost.

Filters, after pcap-filter(7), joined by and, or, not and parentheses:
  ip ip6 arp tcp udp icmp icmp6    proto N    ether N    in    out    dropped    reason NAME
  [src|dst] host IP    [src|dst] net CIDR    [src|dst] port N[-M]    [src|dst] mac MAC

Examples:
  outboard capture --port vm1 -w vm1.pcapng
  outboard capture --port vm1 -w vm1.pcapng 'tcp port 80 or dropped' --seconds 10
  outboard capture --port vm1 -w drops.pcapng dropped --count 100 --snaplen 1514
  outboard capture --port vm1 -w - 'not arp' | tshark -r -")]
pub struct CaptureArgs {
    /// The port
    #[arg(long)]
    port: Name,
    /// The file to write, pcapng; '-' is standard output
    #[arg(short, long, value_name = "FILE")]
    write: PathBuf,
    /// Which frames, in one argument or several [default: all]
    filter: Vec<String>,
    /// End after so many frames
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// End after so many seconds, 3600 at most
    #[arg(long, value_name = "S", default_value_t = SECONDS_DEFAULT)]
    seconds: u32,
    /// Keep so many bytes of each frame, 16384 at most
    #[arg(long, value_name = "BYTES", default_value_t = SNAPLEN_DEFAULT)]
    snaplen: u32,
}

/// What became of it.
#[derive(Debug, Default, Serialize)]
struct Summary {
    frames: u64,
    dropped: u64,
    lost: u64,
    ended: String,
}

/// Captures until it ends.
///
/// # Errors
/// The filter cannot be understood, the file cannot be written, or broker or card cannot be asked.
pub async fn run(global: &Global, args: &CaptureArgs) -> Result<(), CliError> {
    let filter = args.filter.join(" ");
    if let Err(error) = parse_filter(&filter) {
        let notes = error.point(&filter).lines().map(str::to_owned).collect();
        let remedy = "see 'outboard capture --help' for what can be written";
        return Err(CliError::coded("bad_filter", error.to_string(), remedy).with_notes(notes));
    }
    let client = global.client()?;
    let to_stdout = args.write == Path::new("-");
    let mut out: Box<dyn Write> = if to_stdout {
        Box::new(std::io::stdout())
    } else {
        let made = File::create(&args.write);
        Box::new(BufWriter::new(made.map_err(|e| {
            CliError::io("write", &args.write, &e, "name another file with -w")
        })?))
    };
    let request = CaptureRequest {
        filter,
        snaplen: Some(args.snaplen),
        count: args.count,
        seconds: Some(args.seconds),
    };
    let capture: CaptureView = client
        .query(&format!("/v1/ports/{}/captures", args.port), &request)
        .await?;
    let unwritable = |e: std::io::Error| CliError::io("write", &args.write, &e, "check where it is written to");
    pcapng::begin(&mut out, args.port.as_str(), args.snaplen)
        .and_then(|()| out.flush())
        .map_err(unwritable)?;
    let mut summary = Summary::default();
    let drained = drain(&client, &capture, &mut out, &mut summary, &args.write);
    tokio::select! {
        drained = drained => drained?,
        _ = tokio::signal::ctrl_c() => {
            let path = format!("/v1/cards/{}/captures/{}", capture.card, capture.id);
            // One that ended meanwhile is closed already.
            let _: Result<Value, CliError> = client.delete(&path).await;
            "it was interrupted".clone_into(&mut summary.ended);
        }
    }
    out.flush().map_err(unwritable)?;
    let text = format!(
        "{} frames, {} of them dropped by the switch, {} lost to this capture; {}",
        summary.frames, summary.dropped, summary.lost, summary.ended
    );
    if to_stdout {
        eprintln!("{text}");
        return Ok(());
    }
    let view = json!({"file": args.write, "summary": summary});
    show(global, &view, |_| {
        format!("{text}\nwritten to {}", args.write.display())
    })
}

/// Reads what is captured until nothing more comes.
async fn drain(
    client: &Client,
    capture: &CaptureView,
    out: &mut dyn Write,
    summary: &mut Summary,
    file: &Path,
) -> Result<(), CliError> {
    let mut after = 0;
    loop {
        let path = format!("/v1/cards/{}/captures/{}/after/{after}", capture.card, capture.id);
        let CapturedView { frames, lost, ended } = client.get(&path).await?;
        summary.lost = lost;
        for frame in &frames {
            after = frame.number;
            summary.frames += 1;
            summary.dropped += u64::from(frame.dropped.is_some());
            let mut bytes = Vec::new();
            let written = pcapng::frame(&mut bytes, frame).and_then(|()| out.write_all(&bytes));
            written.map_err(|e| CliError::io("write", file, &e, "check where it is written to"))?;
        }
        out.flush()
            .map_err(|e| CliError::io("write", file, &e, "check where it is written to"))?;
        if let Some(why) = ended {
            summary.ended = why;
            return Ok(());
        }
        if frames.is_empty() {
            tokio::time::sleep(PAUSE).await;
        }
    }
}
