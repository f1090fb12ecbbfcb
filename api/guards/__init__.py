"""The guards: what two near questions must agree in before one may have the other's answer. Pure, imports nothing."""
