"""The demo as a Space of the Hub, or on this machine: `MODEL=outputs/my_run python examples/demo/app.py`.

Settings come from the environment, which a Space has under "Variables": `MODEL`, a model folder or an id on the Hub,
and `OPTIONS`, more options of `dinov2-hf demo`, such as `--gallery owner/images --image_size 448`.
"""

import os
import shlex

from dinov2_hf.cli import main


# A Space listens for others; elsewhere nobody but this machine gets in.
HOST = os.environ.get("GRADIO_SERVER_NAME", "0.0.0.0" if "SPACE_ID" in os.environ else "127.0.0.1")

if __name__ == "__main__":
    model = os.environ.get("MODEL", "facebook/dinov2-with-registers-small")
    port = ["--port", os.environ["GRADIO_SERVER_PORT"]] if "GRADIO_SERVER_PORT" in os.environ else []
    main(["demo", model, "--host", HOST, *port, *shlex.split(os.environ.get("OPTIONS", ""))])
