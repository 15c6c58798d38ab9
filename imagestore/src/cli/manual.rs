use std::{fs, io::Write, path::Path};

use clap::{Command, CommandFactory};
use clap_mangen::Man;
use imagestore::Error;

use super::{
    args::{self, Cli},
    exit::{Outcome, Stop},
};

pub(super) fn completions(args: &args::Completions) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "imagestore", &mut script);
    print(&script)
}

pub(super) fn man(args: &args::Man) -> Outcome {
    let mut command = Cli::command();
    command.build();
    match &args.dir {
        Some(dir) => write_all(&command, dir),
        None => print(page(&command).map_err(Stop::output)?.as_bytes()),
    }
}

/// Writes the page of a command, and those of its verbs.
fn write_all(command: &Command, dir: &Path) -> Outcome {
    let name = command.get_display_name().unwrap_or_else(|| command.get_name());
    let path = dir.join(format!("{name}.1"));
    let written = fs::create_dir_all(dir).and_then(|()| fs::write(&path, page(command)?));
    written.map_err(|e| Error::from_io(format_args!("cannot write {}", path.display()), e))?;
    command.get_subcommands().try_for_each(|verb| write_all(verb, dir))
}

/// The manual page of a command; what stands below its options in the help gets sections of its own.
fn page(command: &Command) -> std::io::Result<String> {
    let mut page = Vec::new();
    Man::new(command.clone()).render(&mut page)?;
    let page = String::from_utf8_lossy(&page).into_owned();
    let Some((before, rest)) = page.split_once(".SH EXTRA\n") else { return Ok(page) };
    let (extra, after) = rest.split_once(".SH ").unwrap_or((rest, ""));
    let mut sections = String::new();
    for line in extra.lines() {
        match line.strip_suffix(':').filter(|heading| !heading.starts_with(' ')) {
            // Lines are kept as they are: columns would not survive being filled.
            Some(heading) => {
                let fill = if sections.is_empty() { "" } else { ".fi\n" };
                sections.push_str(&format!("{fill}.SH \"{}\"\n.nf\n", heading.to_uppercase()));
            }
            None => sections.push_str(&format!("{line}\n")),
        }
    }
    Ok(format!("{before}{sections}.fi\n.SH {after}"))
}

fn print(text: &[u8]) -> Outcome {
    let mut out = std::io::stdout().lock();
    out.write_all(text).and_then(|()| out.flush()).map_err(Stop::output)
}
