"""The two ends of a round, independent of the transport between them.

A tensor's trip through one round:

1. `server.FederationServer.payload` encodes the server's tensors for a site: the payload down.
2. `transfer.decode_down` checks and decodes it at the site.
3. `local_round.local_round` trains from it. `transfer.encode_up` encodes what the training changed: the payload up.
4. `server.FederationRound.add` checks and decodes that at the server, and hands it to the aggregation rule.
5. `server.FederationServer.finish_round` gives the aggregate to the server optimiser, from whose result the next round
   starts.

With ``encryption`` the site encrypts after step 3 (`pt_peft.encryption.ciphertexts.Cipher`), the server only adds in
steps 4 and 5 (`pt_peft.encryption.encrypted_server.EncryptedServer`), and the site decrypts in place of step 2.
`protocol.Server` is what both servers do.
"""
