"""
Options of subcommands that are not in their signatures, one file for each subcommand that has any.

`more_options(words)` returns them by name. They may depend on the words of the command line. It imports nothing heavy:
`declarations` reads declarations from files of the package. `more_help(words)`, if it exists, returns lines below the
options.
"""
