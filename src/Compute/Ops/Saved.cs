using static TorchSharp.torch;

namespace Megatron.Compute.Ops;

/// <summary>
/// What one layer keeps of one micro-batch from forward to backward: the explicit replacement of an autograd graph (DESIGN D4). A tree
/// that mirrors the layers: each layer has its own slots (small integers that the layer names as constants) and its children theirs.
/// Tensors in it belong to it: they are detached from dispose scopes when kept. Dropping the tree and running Forward again is recompute.
/// </summary>
/// <remarks>Lives on the rank's thread. The tree is reused from one micro-batch to the next, so steady state allocates no nodes.</remarks>
public sealed class Saved : IDisposable
{
    private readonly List<Tensor?> slots = [];
    private readonly List<Saved?> children = [];

    /// <summary>Facts about the tokens of this micro-batch that every layer may read.</summary>
    public ForwardContext Context { get; private set; }

    public Saved(ForwardContext context) => Context = context;

    /// <summary>The store of child <paramref name="index"/>, made on first use.</summary>
    public Saved Child(int index)
    {
        while (children.Count <= index) children.Add(null);
        return children[index] ??= new Saved(Context);
    }

    /// <summary>
    /// Keeps <paramref name="tensor"/> in <paramref name="slot"/>. An alias is stored, so the caller's tensor may end with its scope.
    /// </summary>
    /// <exception cref="InvalidOperationException">The slot is taken: a Forward ran twice without Drop.</exception>
    public void Keep(int slot, Tensor tensor)
    {
        while (slots.Count <= slot) slots.Add(null);
        if (slots[slot] is not null) throw new InvalidOperationException($"Slot {slot} is already in use; the store was not dropped before Forward ran again.");
        slots[slot] = tensor.alias().DetachFromDisposeScope();
    }

    /// <summary>The kept tensor; it still belongs to the store.</summary>
    /// <exception cref="InvalidOperationException">Nothing is kept there.</exception>
    public Tensor Peek(int slot) =>
        (slot < slots.Count ? slots[slot] : null) ?? throw new InvalidOperationException($"Nothing is saved in slot {slot}.");

    /// <summary>True when something is kept in <paramref name="slot"/>.</summary>
    public bool Has(int slot) => slot < slots.Count && slots[slot] is not null;

    /// <summary>Removes the tensor and hands it to the caller's current dispose scope.</summary>
    public Tensor Take(int slot)
    {
        using var kept = Peek(slot);
        slots[slot] = null;
        return kept.alias(); // a fresh handle on the same storage, registered in the caller's scope
    }

    /// <summary>Frees one slot; does nothing when it is empty.</summary>
    public void Release(int slot)
    {
        if (slot >= slots.Count) return;
        slots[slot]?.Dispose();
        slots[slot] = null;
    }

    /// <summary>Frees everything kept here and below; the nodes stay for the next micro-batch.</summary>
    public void Drop()
    {
        for (var i = 0; i < slots.Count; i++) Release(i);
        foreach (var child in children) child?.Drop();
    }

    /// <summary>Points the (empty) tree at the next micro-batch.</summary>
    /// <exception cref="InvalidOperationException">Something is still kept: a backward did not free what it used.</exception>
    public void Reset(ForwardContext context)
    {
        if (SizeBytes != 0) throw new InvalidOperationException($"{SizeBytes} bytes are still saved for an earlier micro-batch.");
        SetContext(context);
    }

    /// <summary>Bytes kept here and below (storage shared by aliases is counted once per alias).</summary>
    public long SizeBytes
    {
        get
        {
            var total = 0L;
            foreach (var tensor in slots) if (tensor is not null) total += tensor.numel() * tensor.element_size();
            foreach (var child in children) total += child?.SizeBytes ?? 0;
            return total;
        }
    }

    /// <inheritdoc/>
    public void Dispose() => Drop();

    private void SetContext(ForwardContext context)
    {
        Context = context;
        foreach (var child in children) child?.SetContext(context);
    }
}
