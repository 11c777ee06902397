"""The only code that imports Ray: where trials run, who asks for the next one, what a person sees
meanwhile.
"""
