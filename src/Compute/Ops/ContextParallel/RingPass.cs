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
        var send = group.Send(outgoing, (group.Rank + 1) % group.Size);
        return new RingPass(incoming, send, group.Receive(incoming, (group.Rank + group.Size - 1) % group.Size));
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
