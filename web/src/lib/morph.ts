// Makes one tree of nodes like another with as few changes as will do: what stays the same keeps its nodes, and with them
// its selection, its focus and how far it was scrolled.

export function morph(shown: Node, wanted: Node): void {
  let at = shown.firstChild
  for (const node of [...wanted.childNodes]) {
    if (!at) shown.appendChild(node)
    else {
      const next = at.nextSibling
      if (!alike(at, node)) shown.replaceChild(node, at)
      else if (at instanceof Text) settle(at, node as Text)
      else morph(at, node)
      at = next
    }
  }
  while (at) {
    const next = at.nextSibling
    shown.removeChild(at)
    at = next
  }
}

/** Whether `node` can become `wanted` by a change of what is in it. A comment never is one. */
function alike(node: Node, wanted: Node): boolean {
  if (node instanceof Text) return wanted instanceof Text
  return (
    node instanceof Element &&
    wanted instanceof Element &&
    node.tagName === wanted.tagName &&
    node.namespaceURI === wanted.namespaceURI &&
    node.attributes.length === wanted.attributes.length &&
    [...wanted.attributes].every(({ name, value }) => node.getAttribute(name) === value)
  )
}

/** A text that grew is only added to: a selection in what was there stays. */
function settle(text: Text, wanted: Text): void {
  if (text.data === wanted.data) return
  if (wanted.data.startsWith(text.data)) text.appendData(wanted.data.slice(text.data.length))
  else text.data = wanted.data
}
