//! `ktstr image`: writes and lists the guest image.
//!
//! Owns the listing's layout; leaves making the image to image/.
//! Invariant: what is written is byte for byte what a run with the same flags would boot.

use super::args::{ImageAction, ImageArgs};
use super::result_file::ResultFile;
use super::{out, plan};
use crate::error::{Context, Error, Result};
use crate::image::{self, Entry, Image, ImageSpec};
use crate::proto::codec::Wire;
use crate::sys::mmap::Mapping;
use crate::units;
use crate::vmm::kernel::KernelImage;
use std::fs;
use std::io::Seek;
use std::path::{Path, PathBuf};

pub fn cmd_image(args: &ImageArgs) -> Result<()> {
    match &args.action {
        ImageAction::ListFile(path) => {
            if fs::metadata(path).is_ok_and(|data| !data.is_file()) {
                return Err(Error::usage(format!("{} is no regular file, so no archive", path.display())));
            }
            let bytes = fs::read(path).context(|| format!("read {}", path.display()))?;
            let entries = image::list(&bytes).map_err(|error| error.while_doing(path.display()))?;
            out::print(&listing(&entries))
        }
        ImageAction::List => {
            let image = make(args)?;
            out::print(&listing(&described(&image)?))
        }
        ImageAction::Write { output, list } => {
            let mut image = make(args)?;
            write(&mut image, output)?;
            if *list {
                out::print(&listing(&described(&image)?))?;
            }
            image.notes.iter().for_each(|note| out::note(note));
            out::print(&format!("{}: {}\n", out::visible(&output.display().to_string()), units::size(image.bytes)))
        }
    }
}

fn make(args: &ImageArgs) -> Result<Image> {
    let (mut plan, sched) = plan::make(&args.guest)?;
    let modules = plan::add_disk(&mut plan, &args.guest, args.kernel.as_deref())?;
    let release = match &args.kernel {
        Some(path) => KernelImage::open(path)?.release()?,
        None => None,
    };
    let given = args.guest.include.iter().map(|include| {
        let guest = include.guest.as_ref().unwrap_or(&include.host);
        (include.host.clone(), guest.display().to_string())
    });
    let includes = given.chain(plan::includes(&plan)?).collect();
    image::assemble(&ImageSpec {
        init: PathBuf::from("/proc/self/exe"),
        plan: plan.to_bytes(),
        sched,
        kernel: args.kernel.clone(),
        release,
        kernel_config: args.guest.kernel_config.clone(),
        includes,
        modules,
    })
}

/// The entries as they are in the archive, each with its reason where this run put it there.
fn described(image: &Image) -> Result<Vec<Entry>> {
    let bytes = Mapping::read_only(&image.file, image.bytes as usize).context(|| "map the image")?;
    let mut entries = image::list(bytes.bytes())?;
    for entry in &mut entries {
        if let Some(known) = image.entries.iter().find(|known| known.path == entry.path) {
            entry.why.clone_from(&known.why);
        }
    }
    Ok(entries)
}

fn write(image: &mut Image, output: &Path) -> Result<()> {
    image.file.rewind().context(|| "rewind the image")?;
    ResultFile::create(output)?.write(&mut image.file)
}

/// Mode, size, path and reason of each entry.
fn listing(entries: &[Entry]) -> String {
    entries
        .iter()
        .map(|entry| {
            let (path, why) = (out::visible(&entry.path), out::visible(&reason(&entry.why)));
            format!("{:06o} {:>10} {path}{why}\n", entry.mode, entry.bytes)
        })
        .collect()
}

fn reason(why: &str) -> String {
    if why.is_empty() { String::new() } else { format!("  ({why})") }
}
