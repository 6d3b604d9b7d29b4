"""A directive that lists every argument of a program from its own parser, so that the page cannot lag behind.

``{arguments} module:function`` calls ``module.function()`` and lists the `argparse.ArgumentParser` it returns.
"""

from __future__ import annotations

import argparse
import importlib

from docutils import nodes
from sphinx.util.docutils import SphinxDirective


class ArgumentsDirective(SphinxDirective):
    required_arguments = 1

    def run(self):
        module, _, function = self.arguments[0].partition(':')
        parser = getattr(importlib.import_module(module), function)()
        return list(self._of_parser(parser))

    def _of_parser(self, parser: argparse.ArgumentParser):
        usage = parser.format_usage().removeprefix('usage: ')
        yield nodes.literal_block(usage, usage, language='text')
        for group in parser._action_groups:
            actions = [a for a in group._group_actions if a.help != argparse.SUPPRESS]
            commands = [a for a in actions if isinstance(a, argparse._SubParsersAction)]
            actions = [a for a in actions if a not in commands]
            if actions:
                yield nodes.rubric(text=group.title[:1].upper() + group.title[1:])
                yield self._list(parser, actions)
            for command in commands:
                for name, child in command.choices.items():
                    section = nodes.section(ids=[nodes.make_id(child.prog)])
                    section += nodes.title(text=child.prog)
                    if child.description:
                        section += nodes.literal_block(child.description, child.description, language='text')
                    section.extend(self._of_parser(child))
                    section['names'].append(name)
                    yield section

    def _list(self, parser, actions):
        listed = nodes.definition_list()
        formatter = parser._get_formatter()
        for action in actions:
            term = nodes.term('', '', nodes.literal(text=formatter._format_action_invocation(action)))
            text = formatter._expand_help(action) if action.help else ''
            item = nodes.definition('', nodes.paragraph(text=text))
            listed += nodes.definition_list_item('', term, item)
        return listed


def setup(app):
    app.add_directive('arguments', ArgumentsDirective)
    return {'version': '1', 'parallel_read_safe': True}
