using Megatron.Compute.Distributed;
using static TorchSharp.torch;

namespace Megatron.Compute.Ops.ContextParallel;

/// <summary>One hop of a tensor round the ring: to the next rank, while the previous rank's comes in. Started before the work that hides it.</summary>
internal sealed class RingPass
{
    private readonly Tensor incoming;
    private readonly CollectiveWork send;
    private readonly CollectiveWork receive;

    private RingPass(Tensor incoming, CollectiveWork send, CollectiveWork receive) => (this.incoming, this.send, this.receive) = (incoming, send, receive);

    /// <summary>Starts the hop; every rank of the group starts it with a tensor of the same size.</summary>
    /// <param name="outgoing">Contiguous; must stay as it is until <see cref="Complete"/>.</param>
    public static RingPass Start(ProcessGroup group, Tensor outgoing)
    {
        var incoming = empty_like(outgoing);
        var (next, previous) = ((group.Rank + 1) % group.Size, (group.Rank + group.Size - 1) % group.Size);

        // Every second rank receives first: no circle of waits even where a device runs its transfers one after another.
        if (group.Rank % 2 == 0)
        {
            var send = group.Send(outgoing, next);
            return new RingPass(incoming, send, group.Receive(incoming, previous));
        }
        var receive = group.Receive(incoming, previous);
        return new RingPass(incoming, group.Send(outgoing, next), receive);
    }

    /// <summary>Waits for both directions.</summary>
    /// <returns>The previous rank's tensor, in the dispose scope in which the hop was started.</returns>
    public Tensor Complete()
    {
        receive.Wait();
        send.Wait();
        return incoming;
    }
}
