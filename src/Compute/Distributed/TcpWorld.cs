using System.Diagnostics;
using System.Net;
using System.Net.Sockets;
using System.Security.Cryptography;
using System.Text;

namespace Megatron.Compute.Distributed;

/// <summary>Who a rank is and where its peers reach it.</summary>
public sealed record TcpWorldOptions
{
    /// <summary>Job and attempt, e.g. <c>job-7/2</c>: the fence. Ranks of another attempt are refused.</summary>
    public required string Attempt { get; init; }

    /// <summary>Global rank.</summary>
    public required int Rank { get; init; }

    /// <summary>Address of this machine in the training network: listened on, with a port of the system's choice, and published.</summary>
    public required IPAddress Address { get; init; }

    /// <summary>How long one operation may wait for its peers (<c>--distributed_timeout_minutes</c>).</summary>
    public required TimeSpan Timeout { get; init; }

    /// <summary>How long the opening of a group may wait for its members: the slowest of them may still be starting.</summary>
    public required TimeSpan JoinTimeout { get; init; }
}

/// <summary>
/// One rank's way to the others of its attempt by TCP, one per rank and attempt. It listens on a port, publishes the address in the
/// rendezvous store and opens groups with connections of their own: of each pair the higher rank calls the lower. There is no encryption
/// and no authentication beyond the token in the store; use it in the training network only.
/// </summary>
public sealed class TcpWorld : IProcessGroupFactory, IDisposable
{
    /// <summary>Ranks join after they have prepared their data; the default of <c>--distributed_timeout_minutes</c> is 208 days.</summary>
    private static readonly TimeSpan LongestJoin = TimeSpan.FromMinutes(30);

    private static readonly TimeSpan StoreRequestTimeout = TimeSpan.FromSeconds(30);
    private static readonly TcpChannel[] channels = Enum.GetValues<TcpChannel>();

    private readonly Lock gate = new();
    private readonly IRendezvousStore store;
    private readonly TcpWorldOptions options;
    private readonly byte[] attemptHash;
    private readonly TcpAcceptor acceptor;
    private readonly List<TcpProcessGroup> groups = [];
    private readonly CancellationTokenSource ending = new();
    private TcpRendezvousStore? ownStore;
    private string? abortReason;

    /// <summary>Where this rank listens.</summary>
    public IPEndPoint EndPoint => acceptor.EndPoint;

    /// <exception cref="RankFaultException">Another process has this rank in this attempt, or the store is gone.</exception>
    public TcpWorld(IRendezvousStore store, TcpWorldOptions options)
    {
        (this.options, attemptHash) = (options, TcpHello.HashOf(options.Attempt));
        this.store = new PrefixedRendezvousStore(store, $"{options.Attempt}/tcp/");
        var token = RandomNumberGenerator.GetBytes(TcpHello.TokenLength);
        acceptor = new TcpAcceptor(options.Address, attemptHash, token, options.Rank);
        try
        {
            var published = Encoding.UTF8.GetBytes($"{EndPoint} {Convert.ToHexString(token)}");
            if (!this.store.CompareSet(KeyOf(options.Rank), null, published))
                throw new RankFaultException($"Rank {options.Rank} of attempt {options.Attempt} has registered already; a second process must not take its place.", options.Rank);
        }
        catch
        {
            acceptor.Dispose();
            throw;
        }
    }

    /// <summary>Joins an attempt by its rendezvous server, listening where this machine meets the server's network.</summary>
    /// <param name="endPoint"><c>tcp://host:port</c>, perhaps with a path, which is not looked at.</param>
    /// <param name="attempt">See <see cref="TcpWorldOptions.Attempt"/>.</param>
    /// <param name="timeout">How long each operation may take; also the server and the opening of a group, but these at most half an hour.</param>
    /// <exception cref="RankFaultException">There is no server, or another process has this rank.</exception>
    /// <exception cref="OperationCanceledException">The caller gave up.</exception>
    public static TcpWorld Join(string endPoint, string attempt, int rank, TimeSpan timeout, CancellationToken cancellation)
    {
        if (!Uri.TryCreate(endPoint, UriKind.Absolute, out var uri) || uri.Scheme != "tcp" || uri.Port <= 0 || uri.Host.Length == 0)
            throw new ArgumentException($"The rendezvous endpoint is {endPoint}; it must be tcp://host:port.", nameof(endPoint));
        var joinTimeout = timeout < LongestJoin ? timeout : LongestJoin;
        var store = new TcpRendezvousStore(uri.IdnHost, uri.Port, joinTimeout, StoreRequestTimeout, cancellation);
        try
        {
            return new TcpWorld(store, new TcpWorldOptions
            {
                Attempt = attempt, Rank = rank, Address = store.LocalAddress, Timeout = timeout, JoinTimeout = joinTimeout,
            })
            { ownStore = store };
        }
        catch
        {
            store.Dispose();
            throw;
        }
    }

    /// <inheritdoc/>
    public ProcessGroup Create(string name, int globalRank, IReadOnlyList<int> members)
    {
        var rank = members.ToList().IndexOf(globalRank);
        if (globalRank != options.Rank || rank < 0)
            throw new InvalidOperationException($"Rank {options.Rank} opens group {name} of ranks {string.Join(", ", members)} as rank {globalRank}.");
        var groupHash = Convert.ToHexString(TcpHello.HashOf($"{name}:{string.Join(',', members)}"));
        var sockets = channels.ToDictionary(channel => channel, _ => new Socket?[members.Count]);
        var started = Stopwatch.GetTimestamp();
        try
        {
            for (var peer = 0; peer < rank; peer++)
                foreach (var channel in channels) sockets[channel][peer] = Call(name, members[peer], new TcpChannelKey(groupHash, globalRank, channel), started);
            for (var peer = rank + 1; peer < members.Count; peer++)
                foreach (var channel in channels) sockets[channel][peer] = Answer(name, new TcpChannelKey(groupHash, members[peer], channel), started);
            foreach (var socket in sockets.Values.SelectMany(channel => channel)) Prepare(socket);
            lock (gate)
            {
                ThrowIfAborted();
                var group = new TcpProcessGroup(name, rank, [.. members], options.Timeout, sockets);
                groups.Add(group);
                return group;
            }
        }
        catch (Exception problem)
        {
            foreach (var socket in sockets.Values.SelectMany(channel => channel)) socket?.Dispose();
            if (problem is OperationCanceledException) ThrowIfAborted();
            throw;
        }
    }

    /// <summary>Aborts every group of this rank and releases a caller of <see cref="Create"/>; any thread may call it.</summary>
    public void Abort(string reason)
    {
        TcpProcessGroup[] open;
        lock (gate)
        {
            abortReason ??= reason;
            open = [.. groups];
        }
        ending.Cancel();
        foreach (var group in open) group.Abort(reason);
    }

    /// <summary>Closes the port. Groups are disposed by those who opened them.</summary>
    public void Dispose()
    {
        lock (gate) abortReason ??= "the rank has ended";
        ending.Cancel();
        acceptor.Dispose();
        ownStore?.Dispose();
    }

    private static string KeyOf(int rank) => FormattableString.Invariant($"{rank}");

    /// <summary>Keep-alive finds machines that vanish without closing their connections while nothing is sent.</summary>
    private static void Prepare(Socket? socket)
    {
        if (socket is null) return;
        socket.NoDelay = true;
        socket.SetSocketOption(SocketOptionLevel.Socket, SocketOptionName.KeepAlive, true);
        socket.SetSocketOption(SocketOptionLevel.Tcp, SocketOptionName.TcpKeepAliveTime, 15);
        socket.SetSocketOption(SocketOptionLevel.Tcp, SocketOptionName.TcpKeepAliveInterval, 5);
        socket.SetSocketOption(SocketOptionLevel.Tcp, SocketOptionName.TcpKeepAliveRetryCount, 3);
    }

    private Socket Answer(string name, TcpChannelKey key, long started)
    {
        while (true)
        {
            ThrowIfAborted();
            var left = options.JoinTimeout - Stopwatch.GetElapsedTime(started);
            // In pieces, so that an abort is noticed while nobody calls.
            if (acceptor.Claim(key, left < TimeSpan.FromMilliseconds(100) ? left : TimeSpan.FromMilliseconds(100)) is { } socket) return socket;
            if (left <= TimeSpan.Zero)
                throw new RankFaultException(FormattableString.Invariant(
                    $"Group {name}: rank {key.FromRank} did not join within {options.JoinTimeout.TotalSeconds} s."), key.FromRank);
        }
    }

    private Socket Call(string name, int peer, TcpChannelKey key, long started)
    {
        var (address, token) = Find(name, peer, started);
        var socket = new Socket(address.AddressFamily, SocketType.Stream, ProtocolType.Tcp);
        try
        {
            Connect(socket, address, started);
            socket.Send(new TcpHello(attemptHash, token, peer, key).ToBytes());
            socket.Blocking = false;
            var reply = new byte[1];
            while (!socket.Poll(TimeSpan.FromMilliseconds(100), SelectMode.SelectRead))
            {
                ending.Token.ThrowIfCancellationRequested();
                if (Stopwatch.GetElapsedTime(started) > options.JoinTimeout) throw new SocketException((int)SocketError.TimedOut);
            }
            var count = socket.Receive(reply);
            if (count == 0 || reply[0] != (byte)TcpWelcome.Accepted)
                throw new RankFaultException(
                    $"Group {name}: rank {peer} at {address} refused rank {options.Rank} ({(count == 0 ? "closed" : (TcpWelcome)reply[0])}).", peer);
            return socket;
        }
        catch (SocketException problem)
        {
            socket.Dispose();
            throw new RankFaultException($"Group {name}: rank {peer} does not answer at {address}: {problem.Message}.", peer, problem);
        }
        catch
        {
            socket.Dispose();
            throw;
        }
    }

    private void Connect(Socket socket, IPEndPoint address, long started)
    {
        var attempt = socket.BeginConnect(address, null, null);
        var left = options.JoinTimeout - Stopwatch.GetElapsedTime(started);
        var limit = left < TimeSpan.Zero ? TimeSpan.Zero : left < TcpRoster.LongestWait ? left : TcpRoster.LongestWait;
        var first = WaitHandle.WaitAny([attempt.AsyncWaitHandle, ending.Token.WaitHandle], limit);
        if (first == 1) throw new OperationCanceledException(ending.Token);
        if (first != 0) throw new SocketException((int)SocketError.TimedOut);
        socket.EndConnect(attempt);
    }

    private (IPEndPoint Address, byte[] Token) Find(string name, int peer, long started)
    {
        try
        {
            var left = options.JoinTimeout - Stopwatch.GetElapsedTime(started);
            var published = Encoding.UTF8.GetString(store.Get(KeyOf(peer), left < TimeSpan.Zero ? TimeSpan.Zero : left, ending.Token)).Split(' ');
            if (published.Length == 2 && IPEndPoint.TryParse(published[0], out var address) && published[1].Length == 2 * TcpHello.TokenLength)
                return (address, Convert.FromHexString(published[1]));
        }
        catch (FormatException)
        {
            // Reported below.
        }
        catch (RankFaultException missing)
        {
            throw new RankFaultException($"Group {name}: the address of rank {peer} is not known: {missing.Message}", peer, missing);
        }
        throw new RankFaultException($"Group {name}: what rank {peer} published is no address.", peer);
    }

    private void ThrowIfAborted()
    {
        if (abortReason is not null) throw new RankFaultException($"Rank {options.Rank} opens no more groups: {abortReason}");
    }
}
