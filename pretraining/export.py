"""`pretrain-export`: a checkpoint as a Hugging Face folder; the work is done in pretraining.hub.export."""

import sys

from pretraining.hub.export import main

if __name__ == "__main__":
    sys.exit(main())
