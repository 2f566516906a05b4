"""Start `python -m dcdt.serve ARGUMENTS` on a free port, look at the page and ask it once, stop it."""

import json
import subprocess
import sys
import urllib.parse
import urllib.request


def main(arguments: list[str]) -> None:
    question = "how do I add fractions"
    command = [sys.executable, "-m", "dcdt.serve", *arguments, "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        url = server.stdout.readline().split()[0]
        with urllib.request.urlopen(url, timeout=60) as page:
            text = page.read().decode()
        assert "<!doctype html>" in text and '<h1 id="title"' in text
        asked = f"{url}/search?{urllib.parse.urlencode({'q': question, 'k': 3})}"
        with urllib.request.urlopen(asked, timeout=60) as answer:
            found = json.load(answer)
        assert found["videos"] or found["nothing_fits"]
        starts = [[moment["start_s"] for moment in video.get("moments", [])] for video in found["videos"]]
        print(
            f"served {url}: page of {len(text)} characters; {[video['title'] for video in found['videos']]}; {starts}"
        )
    finally:
        server.terminate()
        assert server.wait(30) in (143, -15)


if __name__ == "__main__":
    main(sys.argv[1:])
