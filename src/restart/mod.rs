//! Resuming a program from an image: the phases, in running order.
//!
//! [`phase1_check`] → [`phase2_open`] → [`phase3_fill`] → [`phase4_plan`] → [`phase5_leave`]. All
//! that can fail is tried in the first four, in ordinary code, with nothing destroyed; the memory
//! of the program is already filled when the last one, the point of no return, hands over to the
//! restorer in the payload.

pub mod callers;
pub mod mapping;
pub mod phase1_check;
pub mod phase2_open;
pub mod phase3_fill;
pub mod phase4_plan;
pub mod phase5_leave;
pub mod space;

use crate::error::Result;
use crate::image::read::Image;
use crate::inject::monitor::Monitor;
use crate::resource::descriptors;
use crate::settings::Settings;
use std::convert::Infallible;
use std::path::PathBuf;

/// What the restarter asks for.
#[derive(Default)]
pub struct Options {
    /// Changes to the configuration of the restarted run; relative names are resolved.
    pub settings: Settings,
    /// Whether files that grew since the checkpoint are cut back.
    pub truncate_files: bool,
}

/// Replaces this process by the program in the image.
///
/// # Errors
/// Why it cannot be; nothing has happened then.
pub fn restart(image: &Image, options: &Options, program_name: &str) -> Result<Infallible> {
    let saved = phase1_check::check(image)?;
    let monitor = phase1_check::monitor(image, &saved, options)?;
    let mut warnings = Vec::new();
    let opened = phase2_open::open(image, &saved, &mut warnings)?;
    let mut filled = phase3_fill::fill(image, &saved, &opened, options)?;
    filled.control.monitor = monitor.as_ref().map_or(0, Monitor::pid);
    let plan = phase4_plan::plan(&saved, &opened, filled)?;
    // The last that can fail, for it alone changes something.
    let grown = descriptors::cut(&opened.descriptors, options.truncate_files)?;
    for warning in warnings.into_iter().chain(grown) {
        eprintln!("{program_name}: {warning}");
    }
    phase5_leave::leave(opened, plan)
}

/// Whether [`restart`] would succeed in a process like this one, as far as can be seen without
/// becoming the program: the image is whole, and what it needs is there.
///
/// # Errors
/// Those of [`restart`].
pub fn rehearse(image: &Image) -> Result<()> {
    let saved = phase1_check::check(image)?;
    phase2_open::open(image, &saved, &mut Vec::new())?;
    image.verify()
}

/// A path among the strings of an image.
pub(crate) fn path_of(image: &Image, text: ckpt_abi::image::Text) -> PathBuf {
    image.text(text).into()
}
