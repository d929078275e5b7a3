//! The README's tables of flags are those of the program.

use daoserver::cli::help::flags_markdown;

const BEGIN: &str = "<!-- flags -->";
const END: &str = "<!-- /flags -->";

#[test]
fn the_readmes_flag_table_is_the_programs() {
    let Ok(readme) = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")) else {
        println!("skipped: there is no README.md");
        return;
    };
    let between = readme.split_once(BEGIN).and_then(|(_, rest)| rest.split_once(END)).map(|(table, _)| table);
    let Some(table) = between else { panic!("README.md lacks {BEGIN} and {END}") };
    let wanted = flags_markdown();
    assert_eq!(table.trim(), wanted.trim(), "put this between {BEGIN} and {END} of README.md:\n\n{wanted}");
}
