//! The pictures of docs/observability.md: of every panel that is drawn there is one, and the page shows it.

use berth_tests::pictures::{PANELS, file};
use berth_tests::process::root;
use std::collections::BTreeSet;
use std::fs;

#[test]
fn the_page_shows_every_picture_that_is_drawn_and_no_other() {
    let page = fs::read_to_string(root().join("docs").join("observability.md")).unwrap();
    let mut drawn = BTreeSet::new();
    for (_, title) in PANELS {
        let file = file(title);
        let svg = fs::read_to_string(&file).unwrap_or_else(|_| panic!("{title}: cargo xtask pictures draws it"));
        assert!(svg.starts_with("<svg") && svg.contains(title), "{title} is not in its picture");
        let name = file.file_name().unwrap().to_str().unwrap().to_owned();
        assert!(page.contains(&format!("![{title}](pictures/{name})")), "docs/observability.md does not show {name}");
        drawn.insert(name);
    }
    let there = fs::read_dir(root().join("docs").join("pictures")).unwrap();
    let there: BTreeSet<_> = there.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(there, drawn, "pictures in docs/pictures, and those that are drawn");
}
