//! What `make image` writes: the same to the byte each time, and a bill of materials that is true.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// Runs Python with the scripts of `make image` at hand.
fn python(code: &str, argument: &Path) -> String {
    let scripts = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts");
    let code = format!("import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path; folder = Path(sys.argv[2])\n{code}");
    let output = Command::new("python3").args(["-c", &code, scripts]).arg(argument).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn an_image_is_the_same_to_the_byte_and_holds_what_it_names() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("program"), "one").unwrap();
    let write = |name: &str| {
        python(
            &format!(
                "import oci; print(oci.write(folder / '{name}', 'localhost/x:1', {{'bin/x': (folder / 'program', 0o755)}}, {{'User': '65532:65532'}})[0])"
            ),
            folder.path(),
        )
    };
    let digest = write("a.tar");
    // Another time and another owner's rights change nothing.
    let touched = Command::new("sh").args(["-c", "touch -d 2001-01-01 program && chmod 600 program"]).current_dir(folder.path()).status();
    assert!(touched.unwrap().success());
    assert_eq!(write("b.tar"), digest);
    assert_eq!(fs::read(folder.path().join("a.tar")).unwrap(), fs::read(folder.path().join("b.tar")).unwrap());
    fs::write(folder.path().join("program"), "two").unwrap();
    assert_ne!(write("b.tar"), digest);

    let unpack = |archive: &str, into: &str| {
        let into = folder.path().join(into);
        fs::create_dir_all(&into).unwrap();
        assert!(Command::new("tar").arg("-xf").arg(folder.path().join(archive)).arg("-C").arg(&into).status().unwrap().success());
    };
    unpack("a.tar", "image");
    let read = |path: &str| -> Value { serde_json::from_slice(&fs::read(folder.path().join("image").join(path)).unwrap()).unwrap() };
    let blob = |descriptor: &Value| format!("blobs/{}", descriptor["digest"].as_str().unwrap().replace(':', "/"));
    let index = read("index.json");
    assert_eq!(index["manifests"][0]["digest"], digest.trim());
    let manifest = read(&blob(&index["manifests"][0]));
    assert_eq!(read(&blob(&manifest["config"]))["config"]["User"], "65532:65532");
    assert_eq!(read("manifest.json")[0]["Layers"][0], blob(&manifest["layers"][0]));
    unpack(&format!("image/{}", blob(&manifest["layers"][0])), "layer");
    assert_eq!(fs::read_to_string(folder.path().join("layer/bin/x")).unwrap(), "one");
}

#[test]
fn the_bill_of_materials_tells_what_is_inside_from_what_built_it() {
    let folder = tempfile::tempdir().unwrap();
    let write = "import sbom; sbom.write(folder / 'a', 'x86_64-unknown-linux-musl'); sbom.write(folder / 'b', 'x86_64-unknown-linux-musl')";
    python(write, folder.path());
    let text = fs::read_to_string(folder.path().join("a")).unwrap();
    assert_eq!(text, fs::read_to_string(folder.path().join("b")).unwrap());
    let bill: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&bill["bomFormat"], &bill["specVersion"]), (&"CycloneDX".into(), &"1.6".into()));
    let scopes: BTreeMap<_, _> =
        bill["components"].as_array().unwrap().iter().map(|found| (found["name"].as_str().unwrap(), &found["scope"])).collect();
    for (name, scope) in [("kube", "required"), ("ring", "required"), ("serde_derive", "excluded"), ("syn", "excluded")] {
        assert_eq!(scopes[name], scope, "{name}");
    }
    // Only tests and other systems use these.
    for name in ["proptest", "reqwest", "windows-sys"] {
        assert!(!scopes.contains_key(name), "{name}");
    }
    assert!(bill["components"].as_array().unwrap().iter().all(|found| found["licenses"][0]["expression"].is_string()));
}
